# The appliance as an image. Everything that builds stays in the first stages. docs/image.md
#
#   docker build -t appliance .                                                   without a llama-server
#   docker build -t appliance-llama --build-arg LLAMA_SERVER=debian .             with Debian's llama-server, for models of your own
#   docker build -t llama-server --build-arg LLAMA_SERVER=debian --target llama-server .      Debian's llama-server alone
#
# A worker CLI (see WORKER_COMMAND) can be put in while the image is built. It is fetched once, and kept only if its SHA-256
# is the one that was given; a .tar.gz is unpacked, anything else is taken as one program. It goes to /opt/worker/bin, on PATH:
#
#   docker build -t appliance --build-arg WORKER_CLI_URL=https://… --build-arg WORKER_CLI_SHA256=… .
#
# So can another llama-server than Debian's: a release of llama.cpp as .tar.gz, or one program. It wins over LLAMA_SERVER. Without
# either, mount one and name it in LLAMA_SERVER_PATH:
#
#   docker build -t appliance --build-arg LLAMA_SERVER_URL=https://… --build-arg LLAMA_SERVER_SHA256=… .
#
# GPUs: the NVIDIA runtime (--gpus all) mounts the real nvidia-smi into /usr/bin; ours comes first on PATH and passes through.

FROM python:3.13-slim-trixie AS build
RUN apt-get update && apt-get install -y -qq --no-install-recommends binutils
WORKDIR /src
COPY requirements.lock requirements-dev.lock ./
# Wheels alone, each checked against the lock's hash. The generator of the gRPC code comes from the development lock, and by
# itself, as does setuptools, which builds the package; both stay in this stage.
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install -q --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock \
 && awk '/^[^ #]/ {on = /^(grpcio-tools|setuptools)==/} on' requirements-dev.lock >generator.lock \
 && /opt/build/bin/pip install -q --no-cache-dir --require-hashes --only-binary :all: --no-deps -r generator.lock \
 && python3 -m venv --without-pip /opt/appliance \
 && /opt/build/bin/pip --python /opt/appliance/bin/python3 install -q --no-cache-dir --no-compile \
        --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml MANIFEST.in README.md LICENSE ./
COPY protos protos
COPY appliance appliance
# The package is installed as its wheel, with the command `appliance`. Left out of the result: stubs, sources and tests of
# packages, the C sources and the debug symbols that wheels carry along.
# Compiled ahead, because the root file system may be read-only, and never checked again: nothing here changes.
RUN /opt/build/bin/python3 protos/package_build.py dist \
 && /opt/build/bin/pip --python /opt/appliance/bin/python3 install -q --no-compile --no-deps --no-index dist/*.whl \
 && site=$(/opt/appliance/bin/python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') \
 && find "$site" -type d -name tests -prune -exec rm -rf {} + \
 && find "$site" -type f -regex '.*\.\(pyi\|pyx\|pxd\|pxi\|c\|h\|proto\)' -delete \
 && find "$site" -type f -name '*.so*' -exec strip --strip-unneeded {} + \
 && /opt/appliance/bin/python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$site" \
 && ln -s "$site/appliance" /opt/appliance/package
ARG WORKER_CLI_URL=""
ARG WORKER_CLI_SHA256=""
COPY etc/fetch_program.py ./
RUN mkdir -p /opt/worker/bin && python3 fetch_program.py WORKER_CLI "$WORKER_CLI_URL" "$WORKER_CLI_SHA256" /opt/worker/bin

# /opt/llama: bin/llama-server, and what it needs; without one, an empty bin.
FROM python:3.13-slim-trixie AS llama
WORKDIR /src
COPY etc/fetch_program.py etc/debian_llama_server ./
ARG LLAMA_SERVER=""
ARG LLAMA_SERVER_URL=""
ARG LLAMA_SERVER_SHA256=""
RUN mkdir -p /opt/llama/bin && python3 fetch_program.py LLAMA_SERVER "$LLAMA_SERVER_URL" "$LLAMA_SERVER_SHA256" /opt/llama/files \
 && case "$LLAMA_SERVER_URL:$LLAMA_SERVER" in \
        :debian) ./debian_llama_server /opt/llama/files ;; \
        : | ?*:*) ;; \
        *) echo "LLAMA_SERVER=$LLAMA_SERVER: allowed: debian, or empty. Set LLAMA_SERVER_URL to fetch another one." >&2; exit 1 ;; \
    esac \
 && find /opt/llama -type f -name llama-server -exec ln -sf {} /opt/llama/bin/llama-server \;

# llama-server alone, for compose's engines; its arguments are those of llama-server.
FROM python:3.13-slim-trixie AS llama-server
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libgomp1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=llama /opt/llama /opt/llama
RUN /opt/llama/bin/llama-server --version 2>/dev/null \
 || { echo "There is no llama-server: build with --build-arg LLAMA_SERVER=debian, or with LLAMA_SERVER_URL." >&2; exit 1; }
USER 65534:65534
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
# The arguments may begin with the program, as commands for llama.cpp's own image do: ./llama-server -m …
ENTRYPOINT ["/bin/sh", "-c", "case \"$1\" in llama-server | */llama-server) shift ;; esac; exec /opt/llama/bin/llama-server \"$@\"", "llama-server"]

# The target has a name for commands that name it: docs/compatibility.md
FROM python:3.13-slim-trixie AS runtime
# tini reaps what a worker leaves behind and hands signals on; libgomp1 is what a llama-server computes with. The installer of packages goes: nothing is installed from here on.
# The machine-id is each container's own, and its user owns one folder: the state that must last. Group 0 may write there
# too, for platforms that give every container another user id in that group.
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends tini libgomp1 \
 && (! dpkg -s python3-pip >/dev/null 2>&1 || apt-get purge -y -qq --auto-remove python3-pip python3-venv) \
 && rm -rf /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip /usr/local/bin/pip* \
        /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/log/alternatives.log \
        /etc/machine-id /var/lib/dbus/machine-id \
 && groupadd --gid 10001 appliance \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/appliance --shell /usr/sbin/nologin appliance \
 && install -d -o 10001 -g 0 -m 0775 /var/lib/appliance
COPY --from=build /opt/appliance /opt/appliance
COPY --from=build /opt/worker /opt/worker
COPY --from=llama /opt/llama /opt/llama
COPY shims/nvidia-smi /opt/appliance/shims/nvidia-smi
COPY entrypoint.sh /usr/local/bin/entrypoint.sh
ENV PATH=/opt/appliance/shims:/opt/appliance/bin:/opt/worker/bin:/opt/llama/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PROXY_HOST=0.0.0.0 \
    STATE_DIR=/var/lib/appliance
VOLUME /var/lib/appliance
EXPOSE 14000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["python3", "-m", "appliance", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
CMD ["serve"]
# Last, so that another revision rebuilds nothing.
ARG VERSION=0.2.0
ARG REVISION=""
LABEL org.opencontainers.image.title="Inference Appliance" \
      org.opencontainers.image.description="One container that gives any machine an inference endpoint: OpenAI and Ollama dialects" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
