# A CPU image with the command line: docker build -t prism . && docker run -v "$PWD:/data" prism predict /data/crystals --out /data/out.csv
FROM python:3.11-slim
WORKDIR /opt/prism
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY prism_plugin prism_plugin
COPY calculators calculators
# torch's CPU build first: that of PyPI brings gigabytes of CUDA libraries.
RUN pip install --no-cache-dir -c constraints.txt --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu \
    && pip install --no-cache-dir -c constraints.txt '.[simulate]'
RUN useradd --create-home user
USER user
WORKDIR /data
ENV OMP_WAIT_POLICY=passive
ENTRYPOINT ["prism"]
CMD ["--help"]
