# Pin the digest of the base in production builds: make image BASE=python:3.13-slim@sha256:...
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /src
# What is installed brings no installer along: pip stays in a second environment.
RUN python3 -m venv --without-pip /app && python3 -m venv /build
COPY requirements.lock requirements-build.lock ./
RUN /build/bin/python -m pip --python /app/bin/python install \
        --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock \
    && /build/bin/python -m pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY consumer consumer
COPY schemas schemas
RUN /build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /build/bin/python -m pip --python /app/bin/python install --no-cache-dir --no-deps /wheels/*.whl \
    && find /app -name tests -type d -prune -exec rm -rf {} +

FROM ${BASE}
# Nothing is installed from here on.
RUN python3 -m pip uninstall --yes --root-user-action ignore pip setuptools wheel \
    && python3 -c "import ensurepip, shutil; shutil.rmtree(ensurepip.__path__[0])"
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s --retries=3 CMD ["conversation-consumer", "healthcheck"]
ENTRYPOINT ["conversation-consumer"]
CMD ["run"]
# Last, since they change with each build.
ARG BASE VERSION="" REVISION="" CREATED="" SOURCE=""
LABEL org.opencontainers.image.title="conversation-consumer" \
      org.opencontainers.image.description="Keeps one row per customer conversation right while users, agents, support and timers write at once." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"
