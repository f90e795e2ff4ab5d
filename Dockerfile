# docker build -t protoseg .                                       CPU
# docker build -t protoseg --build-arg INDEX=https://download.pytorch.org/whl/cu126 .    CUDA
# docker run --rm --shm-size 2g -v "$PWD/runs:/app/runs" protoseg  the demo; --gpus all for CUDA
FROM python:3.12-slim
ARG INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
RUN apt-get update && apt-get install -y --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
COPY . .
RUN python -m venv .venv \
 && TORCH=$(grep -oE '^torch==[0-9.]+' constraints.txt) VISION=$(grep -oE '^torchvision==[0-9.]+' constraints.txt) \
 && .venv/bin/pip install --no-cache-dir --index-url "$INDEX" "$TORCH" "$VISION" \
 && .venv/bin/pip install --no-cache-dir -c constraints.txt -e '.[weights,onnx,analysis]' \
 && touch .venv/.installed
ENV PATH=/app/.venv/bin:$PATH
CMD ["make", "demo"]
