# Two stages: the first has what builds callrec, the second what runs it.
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src

# The libraries come before the sources, so that a change of the sources does not fetch them again.
COPY requirements.build.lock requirements.runtime.lock ./
RUN python -m venv /build && /build/bin/pip install --require-hashes -r requirements.build.lock
RUN /build/bin/pip wheel --require-hashes --no-build-isolation --use-pep517 --wheel-dir /wheels -r requirements.runtime.lock

COPY . .
RUN /build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && python -m venv --without-pip /opt/callrec \
 && /build/bin/pip --python /opt/callrec/bin/python install --no-index --no-deps /wheels/*.whl


FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 callrec \
 && useradd --uid 10001 --gid callrec --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin callrec
COPY --from=build /opt/callrec /opt/callrec
ENV PATH=/opt/callrec/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# The spool is shared with FreeSWITCH: mount it, writable for group callrec (10001).
USER callrec
# Port 9470 is [http] of the example configuration.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s CMD \
  ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9470/healthz', timeout=4)"]
ENTRYPOINT ["callrec"]
CMD ["run"]
