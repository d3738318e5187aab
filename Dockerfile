# The commands in a container, on a CPU. Nobody has built it yet; .github/workflows/platforms.yml will.
#   docker build -t sagan_nb .
#   docker run --rm -v "$PWD/runs:/work/runs" sagan_nb train --scale smoke --out runs/first
# For a GPU, leave out the index of CPU wheels, and run with --gpus all.
FROM python:3.13-slim
WORKDIR /src
COPY . .
ARG INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir -c constraints.txt torch torchvision --index-url "$INDEX" \
 && pip install --no-cache-dir -c constraints.txt ".[fid]" \
 && useradd --create-home reader && mkdir -p /work && chown reader /work
USER reader
WORKDIR /work
ENTRYPOINT ["sagan"]
CMD ["--help"]
