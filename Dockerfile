FROM python:3.13-slim AS build

WORKDIR /build
RUN python -m venv --without-pip /opt/taskflow
# The dependencies by themselves first: this layer, the slow one, stays cached until one of the two files changes.
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
      > requirements.txt \
    && pip --python /opt/taskflow/bin/python install --no-cache-dir --constraint constraints.txt \
      --requirement requirements.txt
COPY README.md LICENSE ./
COPY migrations migrations
COPY taskflow_gql taskflow_gql
RUN pip --python /opt/taskflow/bin/python install --no-cache-dir --no-deps .


FROM python:3.13-slim

# By number in USER, so that Kubernetes can see that it is not root (runAsNonRoot).
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/taskflow --shell /usr/sbin/nologin taskflow \
    && install --directory --owner=taskflow --group=taskflow --mode=700 /var/lib/taskflow
COPY --from=build /opt/taskflow /opt/taskflow
ENV PATH=/opt/taskflow/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TASKFLOW_HOST=0.0.0.0 \
    TASKFLOW_PORT=8000 \
    TASKFLOW_DATA_DIR=/var/lib/taskflow
WORKDIR /var/lib/taskflow
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["taskflow", "healthcheck"]
# `docker run IMAGE` serves; `docker run IMAGE migrate`, and every other command, works too.
ENTRYPOINT ["taskflow"]
CMD ["serve"]
