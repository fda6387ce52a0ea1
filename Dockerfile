# The quickstart and the tests of the README in a container: docker build -t fastlg . && docker run --rm fastlg [make test]
# docs/container.md has the rest: GPUs, images and runs from outside, a smaller image for CPUs.
FROM python:3.11-slim-bookworm

# make and git; a C compiler, with which Triton builds its launchers on a GPU. Not pinned: Debian keeps no old versions.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc git libc6-dev make \
    && rm -rf /var/lib/apt/lists/*

# Without root the set-up leaves FFCV out, which would bring half a gigabyte of libraries; the store is read without it.
RUN useradd --create-home --uid 1000 fastlg && install -d -o fastlg -g fastlg /fastlg
USER 1000
WORKDIR /fastlg
COPY --chown=1000:1000 . .

# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu takes torch without CUDA: some 4 GB less.
ARG PIP_EXTRA_INDEX_URL=""
RUN make .venv/.ready && rm -rf /home/fastlg/.cache/pip

ENV PATH=/fastlg/.venv/bin:$PATH
CMD ["make", "train"]
