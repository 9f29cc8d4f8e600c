# An image that serves Quicksilver artefacts with the engine llamacpp. Its wheel has to lie beside this file:
# pip wheel --no-deps -w . PATH/TO/QUICKSILVER
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends cmake g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 quicksilver
COPY serve.lock quicksilver-0.1.0-*.whl /tmp/wheels/
RUN pip install --no-cache-dir --no-deps -r /tmp/wheels/serve.lock /tmp/wheels/*.whl
USER 1000
ENV QUICKSILVER_HOME=/home/quicksilver/cache
RUN quicksilver engine add llamacpp --native
EXPOSE 8000
ENTRYPOINT ["quicksilver", "serve"]
