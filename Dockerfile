# The image of the server: `docker build -t fastai-now .`, then `docker run -p 8080:8080 fastai-now`.
# Plain instructions only, no cache mounts: Docker, buildah, kaniko and the hosts' own builders all build it.
#
#   --build-arg BAKE_MODEL=1   put the checkpoint into the image: a cold start downloads nothing
#   --target full              with torch and fastai, for engine = "fastai" and architectures without a shipped graph

FROM python:3.11-slim-bookworm AS packages
WORKDIR /build
COPY requirements-serve.txt ./
RUN pip install --no-cache-dir --no-compile --no-warn-script-location --prefix=/packages -r requirements-serve.txt \
    # the packages' own tests (7 MB), and ONNX Runtime's tools for language models (6 MB)
    && find /packages -type d \( -name tests -o -path '*/onnxruntime/transformers' \) -prune -exec rm -r {} +

FROM packages AS packages-full
# the index of torch's builds without CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements.txt ./
# skip the packages that /packages has already
RUN PYTHONPATH=/packages/lib/python3.11/site-packages pip install --no-cache-dir --no-compile \
    --no-warn-script-location --prefix=/packages-full --extra-index-url "$TORCH_INDEX" -r requirements.txt

FROM python:3.11-slim-bookworm AS image
LABEL org.opencontainers.image.title="fastai-now" \
      org.opencontainers.image.description="A fastai image classifier: a page, and POST /analyze" \
      org.opencontainers.image.licenses="MIT"
ENV PORT=8080 PYTHONUNBUFFERED=1
EXPOSE 8080
# Tell whether the process is alive, not whether the model is ready: a restart does not speed up a download.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/healthz'); sys.exit(c.getresponse().status != 200)"]
CMD ["python", "-m", "app", "serve", "--host", "0.0.0.0"]
RUN useradd --uid 1000 --create-home app
COPY --from=packages /packages /usr/local
WORKDIR /srv
COPY app app
# settings.toml need not exist; buildah and kaniko want one file that does
COPY LICENSE settings.tom[l] ./
# Compile the imported modules, the standard library's too: under a read-only root each start would do it again.
RUN python -c "import app.cli, app.web.process" \
    && chown app app/models
ARG BAKE_MODEL=""
RUN if [ -n "$BAKE_MODEL" ]; then python -m app fetch; fi
USER 1000

FROM image AS full
COPY --from=packages-full /packages-full /usr/local

# The default target is the last one.
FROM image AS serve
