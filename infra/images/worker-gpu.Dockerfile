# A Prefect worker with promptmill for a machine with an NVIDIA GPU. Built from the repository's root:
#   docker build --file infra/images/worker-gpu.Dockerfile --tag promptmill/worker-gpu:0.1.0 .
# torch's wheels bring the CUDA libraries themselves, in the versions that its metadata pins; the base image adds what the driver's runtime
# needs and no second copy of them, which is why it is `base` and not `runtime` or `devel`.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 DEBIAN_FRONTEND=noninteractive
WORKDIR /src
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3.12=3.12.* python3.12-venv=3.12.* \
    && rm -rf /var/lib/apt/lists/* \
    && python3.12 -m venv /opt/promptmill
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY infra/demo-packages.txt infra/demo-packages.txt
RUN /opt/promptmill/bin/pip install --constraint constraints.txt torch
COPY pipeline pipeline
COPY flows flows
RUN /opt/promptmill/bin/pip install --constraint constraints.txt ".[infra,s3]" \
    && /opt/promptmill/bin/pip install --constraint constraints.txt --no-deps --requirement infra/demo-packages.txt

FROM nvidia/cuda:13.0.1-base-ubuntu24.04
ENV DEBIAN_FRONTEND=noninteractive
# torch.compile and triton build a small launcher with gcc at run time.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates=2024* gcc=4:13.* git=1:2.43.* libc6-dev=2.39-* python3.12=3.12.* python3.12-dev=3.12.* tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1001 promptmill \
    && useradd --uid 1001 --gid 1001 --create-home promptmill \
    && install --directory --owner 1001 --group 1001 /cache /workspaces
COPY --from=build /opt/promptmill /opt/promptmill
COPY --chmod=0555 infra/images/with_secrets.sh /usr/local/bin/with_secrets
ENV PATH=/opt/promptmill/bin:$PATH PYTHONUNBUFFERED=1 PROMPTMILL_CACHE=/cache HF_HOME=/cache/huggingface PROMPTMILL_LOG_FORMAT=json \
    PROMPTMILL_CHECKOUT=/workspaces/checkout NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility CUBLAS_WORKSPACE_CONFIG=:4096:8
USER 1001:1001
WORKDIR /workspaces
ENTRYPOINT ["/usr/bin/tini", "-g", "--", "/usr/local/bin/with_secrets"]
CMD ["promptmill", "worker", "promptmill-gpu", "--healthcheck"]
