#!/bin/sh
# backup.sh FOLDER [DATABASE...]: dump PostgreSQL databases (default: prefect mlflow mlflow_auth) into FOLDER/<time>/, with checksums.
# Where to connect and as whom is libpq's: PGHOST, PGPORT, PGUSER, PGPASSFILE. The artefacts lie in the object store, whose own replication
# or `rclone sync` looks after them; take the databases first, so that everything a database names is in the store's copy.
set -eu
umask 077
[ $# -ge 1 ] || { echo "usage: backup.sh FOLDER [DATABASE...]" >&2; exit 64; }
target=$1
shift
[ $# -gt 0 ] || set -- prefect mlflow mlflow_auth

time=$(date -u +%Y%m%dT%H%M%SZ)
partial=$target/.$time.partial
mkdir -p "$partial"
trap 'rm -rf "$partial"' EXIT
for database in "$@"; do
    pg_dump --no-password --format custom --compress 6 --no-owner --no-privileges --file "$partial/$database.dump" --dbname "$database"
    # A dump that cannot be listed cannot be restored either.
    pg_restore --list "$partial/$database.dump" >/dev/null
done
(cd "$partial" && sha256sum -- *.dump >SHA256SUMS)
sync "$partial"/*
[ ! -e "$target/$time" ] || { echo "backup.sh: $target/$time exists already" >&2; exit 73; }
mv "$partial" "$target/$time"
trap - EXIT
echo "$target/$time"
