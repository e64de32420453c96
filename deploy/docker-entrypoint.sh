#!/bin/sh
# Starts the server. Arguments go to redis-server, for instance: --cluster-enabled yes
# Secrets come from the environment and reach the server by standard input, so that no process list shows them:
#   REDIS_PASSWORD   the password of clients and of replicas
#   CLUSTER_SECRET   the secret by which the shards know each other
set -eu

exec redis-server --port 6379 --dir /data --appendonly yes "$@" - <<EOF
bind * -::*
${REDIS_PASSWORD:+requirepass "$REDIS_PASSWORD"}
${REDIS_PASSWORD:+masterauth "$REDIS_PASSWORD"}
loadmodule /usr/lib/oxigears/liboxigears.so ${CLUSTER_SECRET:+ClusterSecret "$CLUSTER_SECRET"}
EOF
