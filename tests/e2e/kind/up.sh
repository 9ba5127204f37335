#!/usr/bin/env bash
# Brings a kind cluster up with Kubeflow Pipelines, lwfed's overlay `kind` and its secrets, and forwards three ports.
# README.md beside it says the same, command by command. Doing it again repairs what is missing.
#
# usage: tests/e2e/kind/up.sh [up|forward|down]       (default: up, which ends with forward)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

NAME=${LWFED_KIND_NAME:-lwfed}
KFP=${PIPELINE_VERSION:-2.17.0}
ENGINE=${ENGINE:-docker}
LWFED=${LWFED:-.venv/bin/lwfed}
STATE=${LWFED_KIND_STATE:-${XDG_CACHE_HOME:-$HOME/.cache}/lwfed-kind}   # passwords are in it
KFP_MANIFESTS=github.com/kubeflow/pipelines/manifests/kustomize
in_kubeflow() { kubectl --context "kind-$NAME" --namespace kubeflow "$@"; }

need() { command -v "$1" > /dev/null || { echo "error: there is no $1 -> install it" >&2; exit 2; }; }

cluster() {
  kind get clusters | grep -qx "$NAME" || kind create cluster --name "$NAME" --wait 3m
  kubectl --context "kind-$NAME" apply -k "$KFP_MANIFESTS/cluster-scoped-resources?ref=$KFP"
  kubectl --context "kind-$NAME" wait --for condition=established --timeout=60s crd/applications.app.k8s.io
  kubectl --context "kind-$NAME" apply -k "$KFP_MANIFESTS/env/platform-agnostic?ref=$KFP"
  in_kubeflow wait --for condition=available --timeout=15m deployment/ml-pipeline deployment/workflow-controller
}

load() {  # whatever engine built them, kind takes an archive
  "$ENGINE" save --output "$STATE/${1%%:*}.tar" "$1"
  kind load image-archive --name "$NAME" "$STATE/${1%%:*}.tar"
}

images() {
  images/build.sh all --tag trial --engine "$ENGINE"
  "$ENGINE" build --tag minio:trial k8s/components/minio
  for image in lwfed:trial lwfed-mlflow:trial minio:trial; do load "$image"; done
}

secrets() {
  in_kubeflow get secret lwfed-minio > /dev/null 2>&1 || in_kubeflow create secret generic lwfed-minio \
    --from-literal=MINIO_ROOT_USER=admin --from-literal=MINIO_ROOT_PASSWORD="$(openssl rand -hex 24)"
  in_kubeflow get secret lwfed-postgres > /dev/null 2>&1 || in_kubeflow create secret generic lwfed-postgres \
    --from-literal=POSTGRES_PASSWORD="$(openssl rand -hex 24)"
  kubectl --context "kind-$NAME" apply -k k8s/overlays/kind
  in_kubeflow rollout status --timeout=5m statefulset/lwfed-minio
  forward_one lwfed-minio 9000:9000
  local admin
  admin=$(in_kubeflow get secret lwfed-minio -o jsonpath='{.data.MINIO_ROOT_PASSWORD}' | base64 -d)
  MINIO_ROOT_USER=admin MINIO_ROOT_PASSWORD=$admin "$LWFED" store init s3://lwfed/experiments --clients 2 \
    --endpoint http://localhost:9000 --pod-endpoint http://lwfed-minio:9000 --output "$STATE/secrets"
  MINIO_ROOT_USER=admin MINIO_ROOT_PASSWORD=$admin "$LWFED" store init s3://lwfed-mlflow --clients 0 \
    --endpoint http://localhost:9000 --pod-endpoint http://lwfed-minio:9000 --output "$STATE/mlflow"
  in_kubeflow apply -f "$STATE/secrets"
  kubectl patch --local -f "$STATE/mlflow/server.yaml" --type merge \
    -p '{"metadata":{"name":"lwfed-mlflow-s3"}}' -o yaml | in_kubeflow apply -f -
  in_kubeflow rollout status --timeout=5m deployment/lwfed-mlflow
}

forward_one() {  # service, ports: forwarded until `down`, and again where the forward died
  local pid="$STATE/$1.pid"
  if [ -e "$pid" ] && kill -0 "$(cat "$pid")" 2> /dev/null; then return; fi
  in_kubeflow port-forward "service/$1" "$2" > "$STATE/$1.log" 2>&1 &
  echo $! > "$pid"
  for _ in $(seq 50); do grep -q Forwarding "$STATE/$1.log" && return; sleep 0.2; done
  echo "error: $1 is not forwarded -> see $STATE/$1.log" >&2
  exit 1
}

forward() {
  forward_one lwfed-minio 9000:9000
  forward_one ml-pipeline-ui 8080:80
  forward_one lwfed-mlflow 5000:5000
  local server="secret lwfed-store-server -o jsonpath="
  cat << END
# for the trial, in your shell:
export LWFED_KFP_ENDPOINT=http://localhost:8080
export AWS_ENDPOINT_URL_S3=http://localhost:9000
export AWS_ACCESS_KEY_ID=$(in_kubeflow get ${server}'{.data.AWS_ACCESS_KEY_ID}' | base64 -d)
export AWS_SECRET_ACCESS_KEY=$(in_kubeflow get ${server}'{.data.AWS_SECRET_ACCESS_KEY}' | base64 -d)
END
}

down() {
  for pid in "$STATE"/*.pid; do [ -e "$pid" ] && kill "$(cat "$pid")" 2> /dev/null; rm -f "$pid"; done
  kind delete cluster --name "$NAME"
  rm -rf "$STATE"
}

for program in kind kubectl openssl; do need "$program"; done
mkdir -p -m 700 "$STATE"
case ${1:-up} in
  up) cluster >&2; images >&2; secrets >&2; forward ;;
  forward) forward ;;
  down) down ;;
  *) sed -n '2,/^set -/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
