#!/bin/sh
# restore.sh BACKUP [DATABASE...]: verify the checksums of a backup and restore it into databases of the same names (default: all of it).
# A database that has tables is not touched: drop it, or give RESTORE_SUFFIX to restore beside it, look, and rename.
# Stop Prefect and MLflow first. Where to connect and as whom is libpq's: PGHOST, PGPORT, PGUSER, PGPASSFILE; the owner is RESTORE_OWNER (default: the role of the same
# name as the database before its first _, where there is one).
set -eu
[ $# -ge 1 ] || { echo "usage: restore.sh BACKUP [DATABASE...]" >&2; exit 64; }
backup=$1
shift
[ -f "$backup/SHA256SUMS" ] || { echo "restore.sh: $backup has no SHA256SUMS, so it is no finished backup" >&2; exit 66; }
(cd "$backup" && sha256sum --quiet --check SHA256SUMS) || { echo "restore.sh: $backup is damaged; take another" >&2; exit 65; }
if [ $# -eq 0 ]; then
    for dump in "$backup"/*.dump; do set -- "$@" "$(basename "$dump" .dump)"; done
fi

query() { # query DATABASE SQL [NAME=VALUE]: one value
    printf '%s\n' "$2" | psql --no-password --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 --set "${3:-unused=}" --dbname "$1"
}

# Look at all before changing any.
for database in "$@"; do
    [ -f "$backup/$database.dump" ] || { echo "restore.sh: $backup has no $database.dump" >&2; exit 66; }
    name=$database${RESTORE_SUFFIX:-}
    if [ "$(query postgres "select count(*) from pg_database where datname = :'name'" "name=$name")" = 1 ]; then
        tables=$(query "$name" "select count(*) from information_schema.tables where table_schema = 'public'")
        [ "$tables" = 0 ] || { echo "restore.sh: $name has $tables tables already; nothing was changed" >&2; exit 73; }
    fi
done

for database in "$@"; do
    name=$database${RESTORE_SUFFIX:-}
    owner=${RESTORE_OWNER:-${database%%_*}}
    if [ "$(query postgres "select count(*) from pg_roles where rolname = :'owner'" "owner=$owner")" = 0 ]; then
        owner=$(query postgres 'select current_user')
    fi
    if [ "$(query postgres "select count(*) from pg_database where datname = :'name'" "name=$name")" = 0 ]; then
        # Only an owner may make the extensions that a dump asks for.
        psql --no-password --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set "name=$name" --set "owner=$owner" --dbname postgres <<'SQL'
create database :"name" owner :"owner";
revoke connect on database :"name" from public;
SQL
    fi
    pg_restore --no-password --exit-on-error --single-transaction --no-owner --no-privileges --role "$owner" --dbname "$name" "$backup/$database.dump"
    echo "restored $name ($(query "$name" "select count(*) from information_schema.tables where table_schema = 'public'") tables, owner $owner)"
done
