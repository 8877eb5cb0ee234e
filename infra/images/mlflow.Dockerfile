# MLflow's server with authentication, PostgreSQL and proxied artefacts. Built from the repository's root:
#   docker build --file infra/images/mlflow.Dockerfile --tag promptmill/mlflow:0.1.0 .
FROM python:3.11.13-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /opt/mlflow \
    && /opt/mlflow/bin/pip install --constraint constraints.txt "mlflow[auth]" boto3 psycopg2-binary

FROM python:3.11.13-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1001 mlflow \
    && useradd --uid 1001 --gid 1001 --create-home mlflow
COPY --from=build /opt/mlflow /opt/mlflow
COPY --chmod=0555 infra/images/with_secrets.sh /usr/local/bin/with_secrets
COPY --chmod=0555 infra/images/serve_mlflow.sh /usr/local/bin/serve_mlflow
ENV PATH=/opt/mlflow/bin:$PATH PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
USER 1001:1001
WORKDIR /home/mlflow
EXPOSE 5000
ENTRYPOINT ["/usr/bin/tini", "-g", "--", "/usr/local/bin/with_secrets"]
CMD ["serve_mlflow"]
