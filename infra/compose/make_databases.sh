#!/bin/sh
# Run once by PostgreSQL's image on an empty cluster: a role and databases for each server, which may not enter those of the other.
# The passwords are read by psql from their files, so they stand in no command line.
set -eu
secrets=${SECRETS_FOLDER:-/run/secrets}

make() { # make ROLE DATABASE...
    role=$1
    shift
    PASSWORD=$(cat "$secrets/${role}_database_password") ROLE=$role psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres <<'SQL'
\getenv role ROLE
\getenv password PASSWORD
create role :"role" login password :'password';
SQL
    for database in "$@"; do
        psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres --set role="$role" --set database="$database" <<'SQL'
create database :"database" owner :"role";
revoke connect on database :"database" from public;
SQL
    done
}

make prefect prefect
make mlflow mlflow mlflow_auth
# Prefect's migrations need it, and an owner who is no superuser may make it only where it is trusted, as here.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname prefect --command 'create extension if not exists pg_trgm'
