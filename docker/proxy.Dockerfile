# syntax=docker/dockerfile:1
# The proxy: the Redis client and the tokenizers, and no ML runtime. Build it with the repository as the context.
FROM python:3.12-slim-bookworm AS python
ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM python AS environment
WORKDIR /source
COPY pyproject.toml ./
COPY foreseen foreseen
COPY proxy proxy
COPY inference inference
COPY models models
RUN pip wheel --no-deps --wheel-dir /wheels .
# Without pip inside: what cannot install cannot be made to.
RUN python -m venv --without-pip /opt/foreseen
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/foreseen install "$(echo /wheels/foreseen-*.whl)[proxy,grpc,otel]"
RUN /opt/foreseen/bin/python -c "import importlib.util as u, foreseen.proxy.app; assert not u.find_spec('onnxruntime')"

FROM python AS proxy
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin foreseen \
    && install -d -o 10001 -g 10001 /data /data/models
COPY --from=environment /opt/foreseen /opt/foreseen
ENV PATH=/opt/foreseen/bin:$PATH
USER 10001:10001
WORKDIR /data
EXPOSE 8000
ENTRYPOINT ["foreseen"]
CMD ["proxy", "--help"]
