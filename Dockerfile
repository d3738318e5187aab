# The commands in a container. Nobody has built it yet; .github/workflows/platforms.yml will.
#   docker build -t sagan_nb .
#   mkdir -p runs        # else Docker makes it, as root
#   docker run --rm --user "$(id -u):$(id -g)" -e SAGAN_NB_CACHE=/home/reader/runs/.cache -v "$PWD/runs:/home/reader/runs" sagan_nb train --scale smoke --out runs/first
# Smaller, for a CPU alone: --build-arg INDEX=(the index of CPU wheels that PyTorch names). For a GPU: run with --gpus all.
FROM python:3.13-slim
WORKDIR /src
COPY . .
ARG INDEX=
RUN pip install --no-cache-dir -c constraints.txt torch torchvision ${INDEX:+--extra-index-url "$INDEX"} \
 && pip install --no-cache-dir -c constraints.txt ".[fid]" \
 && useradd --create-home reader
USER reader
WORKDIR /home/reader
ENTRYPOINT ["sagan"]
CMD ["--help"]
