# A photo and toy scenes to videos, in a container:
#   docker build -t vq3d .                                                    (CPU)
#   docker build -t vq3d:cuda --build-arg TORCH=cu126 .                       (CUDA 12.6; any name of PyTorch's index)
#   docker run --rm -v "$PWD:/work" -u "$(id -u)" vq3d                        (what `make demo` does, into demo-out/)
#   docker run --rm -v "$PWD:/work" -u "$(id -u)" --gpus all vq3d:cuda render photo.jpg
FROM python:3.12-slim-bookworm

ARG TORCH=cpu
# Idle OpenMP threads sleep instead of spinning.
ENV OMP_WAIT_POLICY=PASSIVE \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1

# A layer of its own: it is large, and does not change with the code.
RUN pip install torch --index-url "https://download.pytorch.org/whl/${TORCH}"

WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY docs/model-card.md docs/
COPY vq3d vq3d
COPY vq3dcli vq3dcli
RUN pip install '.[demo,mesh]' && vq3d --version

# Triton, which comes with CUDA's PyTorch, makes its kernels with a C compiler.
RUN if [ "${TORCH}" != cpu ]; then apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*; fi
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Any user may be asked for by -u: homes and caches lie where all may write.
RUN useradd --create-home --uid 1000 vq3d && mkdir --mode 1777 /work
ENV HOME=/tmp NUMBA_CACHE_DIR=/tmp/numba
USER vq3d
WORKDIR /work
ENTRYPOINT ["vq3d"]
CMD ["demo", "--out", "demo-out"]
