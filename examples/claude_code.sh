#!/usr/bin/env bash
# Claude Code with a model of the appliance; arguments are Claude Code's own.
#
#   MODEL=NAME CONTEXT=32768 examples/claude_code.sh -p "What does this project do?"
set -euo pipefail

export ANTHROPIC_BASE_URL=${BASE_URL:-http://127.0.0.1:14000}
export ANTHROPIC_AUTH_TOKEN=${API_KEY:-any}           # one of APPLIANCE_API_KEYS, where keys are set
export ANTHROPIC_MODEL=${MODEL:-demo}                       # of /v1/models
export ANTHROPIC_DEFAULT_HAIKU_MODEL=$ANTHROPIC_MODEL       # for small tasks in the background
export CLAUDE_CODE_MAX_CONTEXT_TOKENS=${CONTEXT:-32768}     # the context of the model
export CLAUDE_CODE_MAX_OUTPUT_TOKENS=4096                   # it asks for 32000 otherwise, which an engine may refuse
export CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1           # no telemetry, no search for updates
exec claude "$@"
