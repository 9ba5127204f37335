#!/usr/bin/env bash
# Builds lwfed's images with buildah, podman or docker, whichever is installed, and prints their references and digests.
#
# usage: images/build.sh [client|mlflow|all] [options] [-- arguments for the engine's build]     (default: client)
#   --cuda             PyTorch from the package index, with CUDA's libraries (7 GB instead of 2); tag REVISION-cuda
#   --torch-index URL  index of PyTorch for CPUs, without --cuda (default: PyTorch's own)
#   --wheels DIR       install only from the wheels in DIR, PyTorch too, without a package index (see images/README.md)
#   --pip-conf FILE    a pip.conf for the build, such as one with a mirror and its password; it gets into no layer
#   --base IMAGE       base image (default: python:3.11-slim)
#   --tag TAG          the tag (default: the git revision, with -dirty if the tree has changes)
#   --source URL       address of the code, for the label (default: git's remote, if it is on https)
#   --push REPO        push to REPO/lwfed and REPO/lwfed-mlflow, such as registry.example.com/team
#   --save DIR         write DIR/lwfed.tar and DIR/lwfed-mlflow.tar, to load on nodes without a registry
#   --engine NAME      buildah, podman or docker (default: the first that works)
#   --no-pull          use only images that are already on this machine (buildah, podman)
#   --dry-run          print the commands and references, and run none of them
#
# For each image it prints one line: NAME:TAG DIGEST; after a push one more, for `kubernetes.image`: REPO/NAME@DIGEST.
# The engine's own output goes to standard error.
set -euo pipefail
here=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."

from_here() { (cd "$here" && realpath "$@" 2> /dev/null); }   # paths are relative to the caller's folder
die() { echo "error: $1 -> $2" >&2; exit 2; }
usage() { sed -n '2,/^set -/s/^# \{0,1\}//p' images/build.sh; }

targets=() cuda="" torch_index="https://download.pytorch.org/whl/cpu" wheels="" pip_conf="" base=""
tag="" repo="" save="" engine="" pull="yes" dry="" source="" extra=()
while [ $# -gt 0 ]; do
  case $1 in
    client|mlflow) targets+=("$1"); shift; continue;;
    all) targets+=(client mlflow); shift; continue;;
    -h|--help) usage; exit 0;;
    --) shift; extra=("$@"); break;;
    --cuda) cuda=yes; shift; continue;;
    --no-pull) pull=""; shift; continue;;
    --dry-run) dry=yes; shift; continue;;
    --torch-index|--wheels|--pip-conf|--base|--tag|--source|--push|--save|--engine) ;;
    *) die "unknown argument $1" "images/build.sh --help";;
  esac
  [ $# -ge 2 ] || die "$1 needs a value" "images/build.sh --help"
  case $1 in
    --torch-index) torch_index=$2;;
    --wheels) wheels=$(from_here -e -- "$2") || die "no folder $2" "pip wheel -w $2 ..., see images/README.md";;
    --pip-conf) pip_conf=$(from_here -e -- "$2") || die "no file $2" "name a pip.conf";;
    --base) base=$2;;
    --tag) tag=$2;;
    --source) source=$2;;
    --push) repo=${2%/};;
    --save) save=$(from_here -m -- "$2");;
    --engine) engine=$2;;
  esac
  shift 2
done
[ ${#targets[@]} -gt 0 ] || targets=(client)

works() { case $1 in none) ;; docker) docker info > /dev/null 2>&1;; *) command -v "$1" > /dev/null;; esac; }
if [ -z "$engine" ]; then
  for engine in buildah podman docker none; do works "$engine" && break; done
fi
if [ "$engine" = none ]; then
  [ -n "$dry" ] || die "neither buildah nor podman nor a running docker is here" "install one of them"
  engine=buildah
fi

revision=$(git rev-parse --verify HEAD 2> /dev/null || echo unknown)
[ -z "$(git status --porcelain 2> /dev/null)" ] || revision+=-dirty
short=$(sed -E 's/^([0-9a-f]{12})[0-9a-f]*/\1/' <<< "$revision")
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' pyproject.toml | head -1)
if [ -z "$source" ]; then   # without the remote's user and password
  source=$(git remote get-url origin 2> /dev/null | sed -nE 's,^https://([^/@]*@)?(.*)$,https://\2,p' || true)
fi

run() { if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@" >&2; fi; }

# build NAME CONTAINERFILE TAG [more arguments of the build]
build() {
  local name=$1 file=$2 label=$3; shift 3
  local options=(--file "$file" --tag "$name:$label")
  options+=(--label "org.opencontainers.image.revision=$revision" --label "org.opencontainers.image.version=$version")
  [ -z "$source" ] || options+=(--label "org.opencontainers.image.source=$source")
  [ -z "$base" ] || options+=(--build-arg "BASE=$base")
  [ -z "$wheels" ] || options+=(--build-context "wheels=$wheels" --build-arg WHEELS=/wheels)
  [ -z "$pip_conf" ] || options+=(--secret "id=pip,src=$pip_conf")
  if [ "$engine" != docker ]; then
    options+=(--layers --format oci)
    [ -n "$pull" ] || options+=(--pull=never)
  fi
  run "$engine" build "${options[@]}" "$@" ${extra[@]+"${extra[@]}"} .
}

digest() { # of a local image; in a registry it may be another, see push
  case $engine in
    buildah) buildah images --format '{{.Digest}}' "$1" | head -1;;
    podman) podman image inspect --format '{{.Digest}}' "$1";;
    docker) docker image inspect --format '{{.Id}}' "$1";;
  esac
}

push() { # NAME:TAG REPO -> REPO/NAME@DIGEST
  local local=$1 remote=$2/$1 file
  if [ "$engine" = docker ]; then
    run docker tag "$local" "$remote"; run docker push "$remote"
    [ -n "$dry" ] || docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$remote" | grep -F "${remote%:*}@" | head -1
  else
    file=$(mktemp)
    run "$engine" push --digestfile "$file" "$local" "docker://$remote"
    [ -n "$dry" ] || echo "${remote%:*}@$(cat "$file")"
    rm -f "$file"
  fi
}

save() { # NAME:TAG DIR
  local file=$2/${1%:*}.tar
  run mkdir -p "$2"; run rm -f "$file"   # an archive is not overwritten
  if [ "$engine" = docker ]; then run docker save --output "$file" "$1"; else run "$engine" push "$1" "docker-archive:$file:$1"; fi
}

for target in "${targets[@]}"; do
  label=${tag:-$short} more=()
  if [ "$target" = client ]; then
    name=lwfed file=images/Containerfile
    if [ -n "$cuda" ]; then
      label=${tag:-$short-cuda}
    elif [ -z "$wheels" ]; then
      more=(--build-arg "TORCH_INDEX_URL=$torch_index")
    fi
  else
    name=lwfed-mlflow file=images/mlflow/Containerfile
  fi
  build "$name" "$file" "$label" ${more[@]+"${more[@]}"}
  echo "$name:$label$([ -n "$dry" ] || echo " $(digest "$name:$label")")"
  [ -z "$save" ] || save "$name:$label" "$save"
  [ -z "$repo" ] || push "$name:$label" "$repo"
done
