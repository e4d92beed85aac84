# Two stages: everything that builds stays in the first one.
#
#   docker build -t appliance .
#   docker build -t appliance --build-arg WORKER_CLI_URL=https://…/cli.tar.gz --build-arg WORKER_CLI_SHA256=… .
#
# The worker CLI (a program, or a .tar.gz with programs at its top) goes to /opt/worker/bin, which is on PATH.

FROM python:3.13-slim-trixie AS build
WORKDIR /src
COPY requirements.lock requirements-dev.lock ./
# Wheels only, each checked against its hash; the generator of the gRPC code stays in this stage.
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install -q --disable-pip-version-check --no-cache-dir --require-hashes --only-binary :all: -r requirements-dev.lock \
 && python3 -m venv --without-pip /opt/appliance \
 && /opt/build/bin/pip --python /opt/appliance/bin/python3 install -q --disable-pip-version-check --no-cache-dir --no-compile \
        --require-hashes --only-binary :all: -r requirements.lock
COPY protos protos
COPY appliance appliance
RUN mkdir -p appliance/control/v1 && /opt/build/bin/python protos/generate.py --force \
 && site=$(/opt/appliance/bin/python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') \
 && cp -r appliance "$site/appliance" \
 && find "$site" -name tests -type d -prune -exec rm -rf {} + \
 && find "$site" -name '*.pyi' -delete \
 && /opt/appliance/bin/python3 -m compileall -q -j 0 "$site" \
 && ln -s "$site/appliance" /opt/appliance/package
ARG WORKER_CLI_URL=""
ARG WORKER_CLI_SHA256=""
COPY tests/tools/fetch_worker.py /tmp/fetch_worker.py
RUN mkdir -p /opt/worker/bin && python3 /tmp/fetch_worker.py "$WORKER_CLI_URL" "$WORKER_CLI_SHA256" /opt/worker/bin

FROM python:3.13-slim-trixie
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="Inference Appliance" \
      org.opencontainers.image.description="One container that gives any machine an inference endpoint" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
RUN apt-get update \
 && apt-get install -y --no-install-recommends tini \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log \
 && groupadd --gid 10001 appliance \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin appliance \
 && install -d -o 10001 -g 10001 -m 0755 /var/lib/appliance \
 && rm -rf /etc/machine-id /var/lib/dbus/machine-id /usr/local/bin/pip* /usr/bin/pip* /usr/lib/python3/dist-packages/pip* \
        /usr/local/lib/python3*/site-packages/pip*
COPY --from=build /opt/appliance /opt/appliance
COPY --from=build /opt/worker /opt/worker
COPY --chmod=755 shims/nvidia-smi /opt/appliance/shims/nvidia-smi
COPY --chmod=755 entrypoint.sh /usr/local/bin/entrypoint.sh
ENV PATH=/opt/appliance/shims:/opt/appliance/bin:/opt/worker/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    APPLIANCE_HOME=/opt/appliance \
    PROXY_HOST=0.0.0.0 \
    STATE_DIR=/var/lib/appliance
VOLUME /var/lib/appliance
EXPOSE 14000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 CMD ["python3", "-m", "appliance", "healthcheck"]
ENTRYPOINT ["/usr/local/bin/entrypoint.sh"]
CMD ["serve"]
