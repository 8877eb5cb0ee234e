#!/bin/sh
# MLflow's server: databases on PostgreSQL, artefacts proxied to S3, everybody has to log in.
# Reads MLFLOW_DATABASE_HOST, _PORT, _USER, _PASSWORD, _NAME and MLFLOW_AUTH_DATABASE_NAME; MLFLOW_AUTH_ADMIN_PASSWORD is used once, for a
# new database. The passwords reach MLflow by its environment and by files that only this user may read.
set -eu
umask 077

: "${MLFLOW_DATABASE_HOST:?}" "${MLFLOW_DATABASE_USER:?}" "${MLFLOW_DATABASE_PASSWORD:?}" "${MLFLOW_FLASK_SERVER_SECRET_KEY:?}" "${MLFLOW_ARTIFACTS_DESTINATION:?}"

folder=$(mktemp -d)
# In this format : and \ are escaped by a backslash.
escaped=$(printf '%s' "$MLFLOW_DATABASE_PASSWORD" | sed 's/[\\:]/\\&/g')
printf '*:*:*:%s:%s\n' "$MLFLOW_DATABASE_USER" "$escaped" >"$folder/pgpass"
export PGPASSFILE="$folder/pgpass"
unset MLFLOW_DATABASE_PASSWORD escaped

# SQLAlchemy 2.1 would look for psycopg 3 without the driver's name.
server="postgresql+psycopg2://$MLFLOW_DATABASE_USER@$MLFLOW_DATABASE_HOST:${MLFLOW_DATABASE_PORT:-5432}"
export MLFLOW_BACKEND_STORE_URI="$server/${MLFLOW_DATABASE_NAME:-mlflow}"

cat >"$folder/auth.ini" <<EOF
[mlflow]
default_permission = ${MLFLOW_DEFAULT_PERMISSION:-READ}
database_uri = $server/${MLFLOW_AUTH_DATABASE_NAME:-mlflow_auth}
admin_username = ${MLFLOW_AUTH_ADMIN_USERNAME:-admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
EOF
export MLFLOW_AUTH_CONFIG_PATH="$folder/auth.ini"

exec mlflow server --app-name basic-auth --host "${MLFLOW_HOST:-0.0.0.0}" --port "${MLFLOW_PORT:-5000}" --workers "${MLFLOW_WORKERS:-2}" --serve-artifacts
