#!/usr/bin/env bash
# The container's start: check the settings, prepare the machine, drop root privileges, serve.
#
# Works as root and under any --user. The appliance's own verbs are run by it, options of the sidecar without a verb by the sidecar
# (`docker run IMAGE --engine vllm`); any other command is executed as it is (`docker run IMAGE bash`). Sourcing this file runs
# nothing, so that tests can call its functions.
#
# tini starts after the privileges were dropped, not before: as root without the KILL capability it could not pass a
# signal on to the server. So the container's first process has no privilege left either.
set -Eeuo pipefail

readonly SERVICE_USER=10001
readonly SETGID=6 SETUID=7 SETPCAP=8        # numbers of capabilities(7)

say() { printf 'appliance: %s\n' "$*" >&2; }

appliance() { python3 -m appliance "$@"; }

become() { exec tini -s -- "$@"; }      # tini reaps orphans and passes signals on; -s: it need not be process 1

has_capability() {              # has_capability NUMBER: whether it is effective in this process
    local name value
    while read -r name value; do
        if [[ "$name" == CapEff: ]]; then (( 16#$value >> $1 & 1 )); return; fi
    done </proc/self/status
    return 1
}

service_user() {                # service_user COMMAND…: execute it as the service user, without capabilities, for good
    local sets=(--inh-caps=-all --ambient-caps=-all)
    if has_capability "$SETPCAP"; then sets+=(--bounding-set=-all); fi      # changing that set needs SETPCAP
    exec setpriv --reuid="$SERVICE_USER" --regid="$SERVICE_USER" --init-groups --no-new-privs "${sets[@]}" -- "$@"
}

settle_home() {                 # a writable home: a worker keeps its files there, and an arbitrary user has none
    HOME=${STATE_DIR:-/var/lib/appliance}/home
    mkdir -p "$HOME" 2>/dev/null && [[ -w "$HOME" ]] || HOME=/tmp
    export HOME
}

become_server() {               # become_server serve | sidecar ARGUMENT…
    if [[ "$(id -u)" == 0 ]]; then say "the server must not run as root; start the container with \`serve\`."; exit 77; fi
    settle_home
    become python3 -m appliance "${@:-serve}"
}

must_step_down() {
    if ! { has_capability "$SETUID" && has_capability "$SETGID"; }; then
        say "root cannot drop its privileges: add --cap-add SETUID --cap-add SETGID, or use --user $SERVICE_USER:$SERVICE_USER."
        exit 77                 # sysexits.h: not permitted
    fi
}

serve_as_root() {
    must_step_down
    (service_user python3 -m appliance check)       # as the server's user: a secret that only root can read is of no use
    appliance prepare           # machine-id, GPU, nvidia-smi, port 14444
    service_user "${BASH_SOURCE[0]}" become-server
}

sidecar() {                     # beside an engine: nothing of the machine is changed, so there is nothing to prepare
    if [[ "$(id -u)" != 0 ]]; then become_server sidecar "$@"; fi
    must_step_down
    service_user "${BASH_SOURCE[0]}" become-server sidecar "$@"
}

program() {                     # program COMMAND…: what works on the state folder, whose files must be the server's user's own
    if [[ "$(id -u)" != 0 ]]; then become "$@"; fi
    must_step_down
    service_user "${BASH_SOURCE[0]}" become-program "$@"
}

gpuproxyd() {                   # it reads .env itself, so there is no `check` before it
    if [[ "$(id -u)" == 0 ]]; then must_step_down; fi
    appliance prepare
    program "$@"
}

serve_as_is() {
    appliance check
    appliance prepare           # what needs no privilege; the rest is done in another way, or reported
    become_server
}

main() {
    trap 'exit 143' TERM INT        # process 1 ignores signals by default; from `become` on tini handles them
    case ${1:-serve} in
        serve) if [[ "$(id -u)" == 0 ]]; then serve_as_root; else serve_as_is; fi ;;
        become-server) become_server "${@:2}" ;;
        become-program) settle_home; become "${@:2}" ;;
        sidecar) sidecar "${@:2}" ;;
        aiserve-gpuproxyd) gpuproxyd "$@" ;;
        aiserve-gpuproxy-admin) program "$@" ;;
        aiserve-gpuproxy-client) become "$@" ;;
        -[EHPBMIN]* | --engine* | --host* | --port* | --pod* | --model*) sidecar "$@" ;;     # the sidecar's options without its verb
        migrate | users | keys | credits | prices | admin) program python3 -m appliance "$@" ;;
        check | prepare | settings | routes | models | download | healthcheck | support | simulate | ctl | version | help | -*) become python3 -m appliance "$@" ;;
        *)  if ! type -P -- "$1" >/dev/null; then exec python3 -m appliance "$@"; fi      # which verb may be meant
            become "$@" ;;
    esac
}

if [[ "${BASH_SOURCE[0]}" == "$0" ]]; then main "$@"; fi
