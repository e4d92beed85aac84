#!/usr/bin/env bash
# Check the environment, ready the machine, step down from root, serve.
# Works as root and under any other user id; becomes whatever other command it is given.
set -Eeuo pipefail

SERVICE_UID=${SERVICE_UID:-10001}
VERBS=" check prepare settings healthcheck version ctl "

appliance() { python3 -m appliance "$@"; }

has_capability() {              # has_capability NUMBER: is it in this shell's effective set?
    local set
    set=$(awk '/^CapEff:/ {print $2}' /proc/self/status)
    (( 0x$set >> $1 & 1 ))
}

# An init reaps the worker's orphans and passes signals on. It must be of the same user as what it starts: root without
# CAP_KILL may not signal another user's process.
init=()
if [[ $$ == 1 ]] && command -v tini >/dev/null; then init=(tini --); fi

step_down() {                   # step_down COMMAND…: become the service user, without any capability or a way back
    local bounding=()
    if has_capability 8; then bounding=(--bounding-set=-all); fi     # SETPCAP: without it setpriv would fail
    export HOME=/tmp
    exec setpriv --reuid="$SERVICE_UID" --regid="$SERVICE_UID" --clear-groups --inh-caps=-all --ambient-caps=-all \
        "${bounding[@]}" --no-new-privs -- "${init[@]}" "$@"
}

main() {
    [[ $# -gt 0 ]] || set -- serve
    if [[ "$VERBS" == *" $1 "* ]]; then exec python3 -m appliance "$@"; fi
    [[ "$1" == serve ]] || exec "${init[@]}" "$@"
    trap 'exit 143' TERM        # until the init is there, this shell is process 1 and would ignore it

    appliance check             # names every problem at once, exits 78
    if [[ "$(id -u)" == 0 ]]; then
        appliance prepare       # machine-id, GPU, nvidia-smi, port 14444
        step_down python3 -m appliance serve
    fi
    export HOME=/tmp            # an arbitrary user id has no home
    exec "${init[@]}" python3 -m appliance serve
}

[[ "${BASH_SOURCE[0]}" != "$0" ]] || main "$@"
