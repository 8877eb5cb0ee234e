# A Prefect worker with promptmill for a machine without a GPU. Built from the repository's root:
#   docker build --file infra/images/worker.Dockerfile --tag promptmill/worker:0.1.0 .
FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/promptmill
# The libraries first: they change less often than the code. The CPU build of torch has none of the CUDA libraries, some gigabytes less.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY infra/demo-packages.txt infra/demo-packages.txt
RUN /opt/promptmill/bin/pip install --constraint constraints.txt --index-url "${TORCH_INDEX}" torch
COPY pipeline pipeline
COPY flows flows
RUN /opt/promptmill/bin/pip install --constraint constraints.txt ".[infra,s3]" \
    && /opt/promptmill/bin/pip install --constraint constraints.txt --no-deps --requirement infra/demo-packages.txt

FROM python:3.11.13-slim-bookworm
# git and DVC take the workspace at the commit of a run; libgomp is torch's.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates=20230311+deb12u1 git=1:2.39.* libgomp1=12.2.* tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1001 promptmill \
    && useradd --uid 1001 --gid 1001 --create-home promptmill \
    && install --directory --owner 1001 --group 1001 /cache /workspaces
COPY --from=build /opt/promptmill /opt/promptmill
COPY --chmod=0555 infra/images/with_secrets.sh /usr/local/bin/with_secrets
ENV PATH=/opt/promptmill/bin:$PATH PYTHONUNBUFFERED=1 PROMPTMILL_CACHE=/cache HF_HOME=/cache/huggingface PROMPTMILL_LOG_FORMAT=json
USER 1001:1001
WORKDIR /workspaces
ENTRYPOINT ["/usr/bin/tini", "-g", "--", "/usr/local/bin/with_secrets"]
CMD ["prefect", "worker", "start", "--pool", "promptmill", "--type", "process", "--with-healthcheck", "--install-policy", "never"]
