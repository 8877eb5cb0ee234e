#!/bin/sh
# with_secrets COMMAND...: for each variable NAME_FILE, put that file's content into NAME, then become COMMAND.
# Secrets come as files (compose and Kubernetes mount them); most programs read variables. They never stand in a command line.
set -eu

for name in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)_FILE=.*/\1/p'); do
    file=$(printenv "${name}_FILE")
    if [ ! -r "$file" ]; then
        echo "with_secrets: ${name}_FILE names $file, which cannot be read by $(id -un 2>/dev/null || id -u). Mount the secret, or unset the variable." >&2
        exit 78
    fi
    if [ -n "$(printenv "$name" || true)" ]; then
        echo "with_secrets: both $name and ${name}_FILE are set. Unset one." >&2
        exit 78
    fi
    value=$(cat "$file")
    if [ -z "$value" ]; then
        echo "with_secrets: $file is empty, so $name would be. Write the secret into it." >&2
        exit 78
    fi
    export "$name=$value"
    unset "${name}_FILE"
done
exec "$@"
