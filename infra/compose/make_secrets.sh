#!/bin/sh
# Make the secrets of compose.yaml that do not exist yet, at random, in the folder `secrets` beside it. Nothing is overwritten.
# The folder is closed to others; the files in it are readable, because compose mounts them as they are and the services are no root.
set -eu
umask 077
folder=${1:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 0700 "$folder"

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }

keep() { # keep NAME VALUE
    if [ ! -e "$folder/$1" ]; then
        printf '%s' "$2" >"$folder/$1.partial"
        chmod 0444 "$folder/$1.partial"
        mv "$folder/$1.partial" "$folder/$1"
        echo "made $folder/$1"
    fi
}

for name in grafana_admin_password mlflow_admin_password mlflow_database_password mlflow_flask_secret postgresql_password \
    prefect_auth_password prefect_database_password s3_access_key s3_secret_key; do
    keep "$name" "$(random)"
done
keep mlflow_worker_password "$(cat "$folder/mlflow_admin_password")"
keep prefect_auth_string "admin:$(cat "$folder/prefect_auth_password")"
keep s3_identities "$(printf '{"identities": [{"name": "promptmill", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}' \
    "$(cat "$folder/s3_access_key")" "$(cat "$folder/s3_secret_key")")"
