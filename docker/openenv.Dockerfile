# An OpenEnv server of an environment. From the root of the repository:
#   docker build -f docker/openenv.Dockerfile -t eef-openenv .
#   docker run --rm -p 127.0.0.1:8000:8000 eef-openenv                        # the embedded shop
#   docker run --rm -p 127.0.0.1:8000:8000 eef-openenv --env scienceworld -p processes=8
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/data:/data:ro" eef-openenv --env webshop -p data=/data
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /eef
ENV PYTHONUNBUFFERED=1

# first what the installation depends on, so that an edit of the code does not install everything again
COPY pyproject.toml constraints.txt Makefile README.md LICENSE ./
COPY eef/__init__.py eef/__init__.py
RUN make setup && .venv/bin/python -m pip install -e '.[openenv]'

COPY . .
RUN useradd --create-home server
USER server
EXPOSE 8000
# the container's own address: -p 127.0.0.1:8000:8000 keeps the port on this machine
ENTRYPOINT [".venv/bin/eef", "serve", "--host", "0.0.0.0"]
