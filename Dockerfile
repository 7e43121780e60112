# docker build -t eef . && docker run --rm -v "$PWD/experiments/runs:/eef/experiments/runs" -v "$PWD/figures:/eef/figures" eef
# The tests: docker run --rm eef make test
FROM python:3.11-slim

RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /eef
ENV MPLBACKEND=Agg PYTHONUNBUFFERED=1

# first what the installation depends on, so that an edit of the code does not install everything again
COPY pyproject.toml constraints.txt Makefile README.md LICENSE ./
COPY eef/__init__.py eef/__init__.py
RUN make setup

COPY . .
CMD ["make", "demo"]
