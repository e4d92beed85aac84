#!/usr/bin/env bash
# Each API once, with curl: models, chat, a stream, embeddings, responses, Anthropic's messages, Ollama's chat.
#
#   BASE_URL=http://127.0.0.1:14000 API_KEY=any MODEL=demo EMBEDDING_MODEL=demo examples/curl.sh
set -euo pipefail

url=${BASE_URL:-http://127.0.0.1:14000} key=${API_KEY:-any} model=${MODEL:-demo}
hello='[{"role": "user", "content": "Hello"}]'

ask() {     # ask PATH [BODY]: a POST where there is a body. The key is read from a file, so that `ps` does not show it.
    printf '\n== %s\n' "$1"
    curl -sSN --fail-with-body "$url$1" -H @<(printf 'authorization: Bearer %s' "$key") \
        -H 'content-type: application/json' ${2:+--data "$2"}
    echo
}

ask /v1/models
ask /v1/chat/completions "{\"model\": \"$model\", \"messages\": $hello}"
ask /v1/chat/completions "{\"model\": \"$model\", \"messages\": $hello, \"stream\": true}"
ask /v1/embeddings "{\"model\": \"${EMBEDDING_MODEL:-$model}\", \"input\": [\"a cat\", \"a kitten\"]}"
ask /v1/responses "{\"model\": \"$model\", \"input\": \"Hello\"}"
ask /v1/messages "{\"model\": \"$model\", \"max_tokens\": 1000, \"messages\": $hello}"
ask /api/chat "{\"model\": \"$model\", \"messages\": $hello}"
