# The verbs of this project; `make` alone prints them. CI runs `make test`.
# The first that is new enough, has venv and was built with its profile, which is worth a third; else the first.
PYTHON ?= $(shell for python in python3 /usr/bin/python3; do $$python -I foreseen/operate/interpreter.py 2>/dev/null && echo $$python && exit; done; echo python3)
VENV   := .venv
TRITON := .venv-tritonclient
MLSERVER := .venv-mlserver
TRITONSERVER := .venv-triton
RAY    := .venv-ray
AIRFLOW := .venv-airflow
OPENAI := .venv-openai
NPM    := .npm-openai
LITELLM := .venv-litellm
COHERE := .venv-cohere
INFINITY := .venv-infinity
TORCH  := .venv-torch
OTELTAP := .venv-oteltap
KAFKA  := .venv-kafka
DEPLOY := .venv-deploy
SITE   := .venv-site
KSERVE := .venv-kserve
POSTGRES := $(or $(firstword $(wildcard /usr/lib/postgresql/*/bin/postgres)),/usr/lib/postgresql/15/bin/postgres)
BIN    := $(VENV)/bin
DATA   ?= data
PORT   ?= 8000
GRPC_PORT ?= $(shell expr $(PORT) + 1)
HAS_GRPC := "import importlib.util as u; raise SystemExit(u.find_spec('grpc') is None)"

.DEFAULT_GOAL := help

.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## print these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Variables: PORT=$(PORT) DATA=$(DATA) PYTHON=$(PYTHON) (make up PORT=8080). The command itself: $(BIN)/foreseen"

up: setup ## start everything on this machine: http://127.0.0.1:8000 (PORT=8080, DATA=folder)
	@exec $(BIN)/foreseen up --data $(DATA) --port $(PORT) $(shell $(BIN)/python -c $(HAS_GRPC) 2>/dev/null && echo --grpc-port $(GRPC_PORT)) --model minilm --model fingerprint

setup: $(VENV)/installed ## put everything, the command `foreseen` too, into .venv

$(VENV)/installed: pyproject.toml
	@echo "setup: installing into $(VENV) (a minute the first time)"
	@$(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --disable-pip-version-check --upgrade pip && \
	   $(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]'; } > $(VENV)/install.log 2>&1 \
	   || { tail -20 $(VENV)/install.log; echo "setup: failed; the whole log is $(VENV)/install.log"; exit 1; }
	@touch $@

lint: setup ## ruff, mypy --strict and the import contract
	@mkdir -p build
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache > build/imports.log || { cat build/imports.log; exit 1; }

$(TRITON)/installed: tests/clients/tritonclient.txt
	@echo "setup: installing tritonclient into $(TRITON)"
	@$(PYTHON) -m venv $(TRITON)
	@$(TRITON)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

/usr/bin/promtool:
	@echo "setup: installing prometheus and promtool (Debian's package; needs root)"
	@apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus >/dev/null

/usr/bin/redis-server:
	@echo "setup: installing redis-server and libfaketime (Debian's packages; needs root; no server is started)"
	@apt-get update -qq && RUNLEVEL=1 apt-get install -y -qq --no-install-recommends redis-server libfaketime >/dev/null

$(MLSERVER)/installed: tests/clients/mlserver.txt
	@echo "setup: installing MLServer into $(MLSERVER)"
	@$(PYTHON) -m venv $(MLSERVER)
	@$(MLSERVER)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(POSTGRES):
	@echo "setup: installing PostgreSQL (Debian's package; needs root)"
	@apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql >/dev/null

$(RAY)/installed: tests/integrations/ray.txt pyproject.toml
	@echo "setup: installing Ray into $(RAY)"
	@$(PYTHON) -m venv $(RAY)
	@$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(AIRFLOW)/installed: tests/integrations/airflow.txt pyproject.toml
	@echo "setup: installing Airflow into $(AIRFLOW)"
	@$(PYTHON) -m venv $(AIRFLOW)
	@$(AIRFLOW)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(OPENAI)/installed: tests/integrations/openai.txt
	@echo "setup: installing clients of OpenAI's and rerank APIs into $(OPENAI)"
	@$(PYTHON) -m venv $(OPENAI)
	@$(OPENAI)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(NPM)/installed: tests/integrations/openai.npm.txt
	@echo "setup: installing OpenAI's client of npm into $(NPM)"
	@npm install --silent --no-fund --no-audit --prefix $(NPM) $$(grep -v '^#' $<)
	@touch $@

$(COHERE)/installed: tests/integrations/cohere.txt
	@echo "setup: installing langchain-cohere into $(COHERE)"
	@$(PYTHON) -m venv $(COHERE)
	@$(COHERE)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(INFINITY)/installed: tests/integrations/infinity.txt
	@echo "setup: installing infinity and torch into $(INFINITY)"
	@$(PYTHON) -m venv $(INFINITY)
	@$(INFINITY)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(TORCH)/installed: tests/integrations/torch.txt
	@echo "setup: installing torch, transformers and sentence-transformers into $(TORCH)"
	@$(PYTHON) -m venv $(TORCH)
	@$(TORCH)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(OTELTAP)/installed: tests/integrations/oteltap.txt
	@echo "setup: installing oteltap into $(OTELTAP)"
	@$(PYTHON) -m venv $(OTELTAP)
	@$(OTELTAP)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(KAFKA)/installed: tests/integrations/kafka.txt
	@echo "setup: installing Kafka's other clients into $(KAFKA)"
	@$(PYTHON) -m venv $(KAFKA)
	@$(KAFKA)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

test-integrations: setup $(RAY)/installed $(AIRFLOW)/installed $(TORCH)/installed $(OPENAI)/installed $(NPM)/installed $(COHERE)/installed $(INFINITY)/installed $(OTELTAP)/installed $(KAFKA)/installed $(KSERVE)/installed $(TRITONSERVER)/installed ## batch runs by Ray and Airflow, model folders against torch, clients and servers of OpenAI's and rerank APIs, clients of Kafka, a collector of traces, each in its own environment
	@$(BIN)/python -m pytest tests/integrations

$(DEPLOY)/installed: tests/deploy/requirements.txt
	@echo "setup: installing Helm's SDK and Kubernetes' schemas into $(DEPLOY)"
	@$(PYTHON) -m venv $(DEPLOY)
	@$(DEPLOY)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(KSERVE)/installed: tests/deploy/kserve.txt
	@echo "setup: installing KServe's Python models into $(KSERVE)"
	@$(PYTHON) -m venv $(KSERVE)
	@$(KSERVE)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

build/deploy/node_modules: tests/deploy/package.json
	@echo "setup: installing schemas of KEDA and the Prometheus operator into build/deploy"
	@mkdir -p build/deploy && cp $< build/deploy/
	@cd build/deploy && npm install --silent --no-audit --no-fund
	@touch $@

test-deploy: setup $(DEPLOY)/installed $(KSERVE)/installed build/deploy/node_modules ## the Helm chart and the KServe files, rendered and checked against schemas and the command line (needs npm)
	@$(BIN)/python -m pytest tests/deploy

check: lint ## lint, types, import contract and all tests that start no other process: under two minutes, no root
	@$(BIN)/python -m pytest --in-process

test: lint $(TRITON)/installed $(MLSERVER)/installed /usr/bin/promtool $(POSTGRES) /usr/bin/redis-server ## the test suite, from nothing, but for the longest stories
	@$(BIN)/python -m pytest -m "not long"

test-long: setup $(TRITON)/installed $(MLSERVER)/installed /usr/bin/promtool $(POSTGRES) /usr/bin/redis-server ## the longest stories: every fault under load, brokers of Kafka in trouble, handovers, shadow traffic, exhaustive fuzzing
	@$(BIN)/python -m pytest -m long

docs: setup ## write the reference tables of docs/ from the code
	@$(BIN)/python -m tests.make_docs

$(SITE)/installed: tests/site/requirements.txt
	@echo "setup: installing mkdocs-material into $(SITE)"
	@$(PYTHON) -m venv $(SITE)
	@$(SITE)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(SITE)/mermaid.min.js: $(SITE)/installed
	@echo "setup: fetching mermaid, which draws the site's diagrams, with npm"
	@cd $(SITE) && npm pack --silent mermaid@11.12.0 > /dev/null && tar -xzf mermaid-11.12.0.tgz package/dist/mermaid.min.js
	@mv $(SITE)/package/dist/mermaid.min.js $@ && touch $@ && rm -r $(SITE)/package $(SITE)/mermaid-11.12.0.tgz

site: $(SITE)/mermaid.min.js ## build the website of docs/ into build/site and print how readable it is; a broken link or any warning fails
	@NO_MKDOCS_2_WARNING=1 $(SITE)/bin/python -m mkdocs build --strict
	@$(SITE)/bin/python -m tests.site.readability

pictures: setup ## draw docs/pictures/overview.svg: the Overview dashboard of a system under load (needs Debian's prometheus)
	@$(BIN)/python -m tests.site.dashboard_picture

screenshots: site ## look at every page of the website in a real browser (needs chromium): build/screenshots
	@$(SITE)/bin/python -m tests.site.screenshots

proto: setup ## compile foreseen/protocol/open_inference.proto to the descriptors that are read at run time
	@$(BIN)/python -m grpc_tools.protoc -Iforeseen/protocol --descriptor_set_out=foreseen/protocol/open_inference.binpb open_inference.proto

dashboards: setup ## write grafana/dashboards from grafana/make.py
	@$(BIN)/python -m grafana.make

$(TRITONSERVER)/installed: tests/clients/triton.txt
	@echo "setup: installing Triton (nvidia-pytriton) into $(TRITONSERVER)"
	@$(PYTHON) -m venv $(TRITONSERVER)
	@$(TRITONSERVER)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

bench-peers: $(MLSERVER)/installed $(TRITONSERVER)/installed ## what bench-hit measures itself against, each in its own environment

bench: setup ## the headline figures in five minutes, each with its goal; fails where one is missed (needs wrk and nginx-light)
	@$(BIN)/python -m bench.hit --rounds 3 --seconds 1 --only rows --only texts; hit=$$?; \
	$(BIN)/python -m bench.miss --rounds 3 --requests 300 --entries 1000 --throughput none; exit $$((hit | $$?))

bench-hit: setup ## a hit beside nginx, a dict, and Triton and MLServer if `make bench-peers` has put them here (needs Debian's wrk and nginx-light)
	@$(BIN)/python -m bench.hit

bench-grpc: setup ## a gRPC hit beside an empty grpc.aio servicer, Triton's cache (`make bench-peers`) and HTTP; what a miss adds (needs wrk)
	@$(BIN)/python -m bench.grpc_hit

bench-tenants: setup ## what a key and TLS cost a hit, beside nginx with TLS (needs Debian's wrk and nginx-light)
	@$(BIN)/python -m bench.tenants $(ARGS)

bench-overhead: setup ## what metrics, logs and scrapes cost a hit (needs Debian's wrk)
	@$(BIN)/python -m bench.overhead

$(LITELLM)/installed: tests/clients/litellm.txt
	@echo "setup: installing LiteLLM's proxy into $(LITELLM)"
	@$(PYTHON) -m venv $(LITELLM)
	@$(LITELLM)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

bench-openai: setup $(LITELLM)/installed ## /v1/embeddings beside LiteLLM's proxy with its cache on, and the server asked directly (needs Debian's wrk)
	@$(BIN)/python -m bench.openai_peers

bench-miss: setup ## a miss beside the model process asked directly, also with a million entries (440 MB of wheels for mpnet)
	@$(BIN)/python -m bench.miss

bench-rerank: setup ## a reranker asked directly, through the cache by the pair, and by LiteLLM if `make test-integrations` has put it here
	@$(BIN)/python -m bench.rerank

bench-scale: setup ## cost per request and memory per entry as everything grows; near's policy beside LRU and the optimum
	@$(BIN)/python -m bench.scale

simulate-fleet: setup ## 2 to 64 proxies over Redis Cluster on a real trace of keys, with and without hashing; what ends first (needs Debian's wrk)
	@$(BIN)/python -c "from tests.models_fixture import built_data; built_data('fingerprint')"
	@$(BIN)/python -m bench.fleet

bench-antipattern: setup ## a big model behind an online API, alone and behind Foreseen, load raised until each falls over
	@$(BIN)/python -m bench.antipattern

bench-model: setup ## throughput of the model process beside a bare, tuned ONNX Runtime loop
	@$(BIN)/python -c "from tests.models_fixture import built_data; built_data()"
	@$(BIN)/python -m bench.model_server --data build/test-data

bench-warm: setup ## imports beside raw Redis mass insertion, computing beside a bare loop
	@$(BIN)/python -c "from tests.models_fixture import built_data; built_data('minilm', 'digits')"
	@$(BIN)/python -m bench.warm --data build/test-data

verify-exact: setup ## rows through the server are the bits of rows alone: minilm and mpnet (440 MB of wheels), four precisions, two pools, ragged and fixed
	@$(BIN)/python -m bench.exact

verify-gpu: setup ## minilm and mpnet on a GPU (smaller on a CPU): shapes, CUDA graphs, bits, a restart; under eight minutes
	@$(BIN)/python -m bench.verify_gpu

verify-lease: setup ## 10,000 requests for one cold row at two proxies of four workers, the leader killed: two model rows at most
	@$(BIN)/python -m tests.leasing --requests 10000 --workers 4 --proxies 2

verify-quotas: setup ## a tenant's limit over two proxies of four workers for a minute, then with the state store killed
	@$(BIN)/python -c "from tests.models_fixture import built_data; built_data('fingerprint')"
	@$(BIN)/python -m tests.quotas

verify-rolling: setup ## 20 rolling restarts, 5 builds and another manifest under load: no request may fail (five minutes)
	@$(BIN)/python -m tests.rolling --restarts 20 --builds 5

verify-handover: setup ## minilm fp32 -> int8-rowwise under a Zipf load: hits and p99 after a handover, a rollback, a cold switch (seven minutes)
	@$(BIN)/python -m tests.handover --model minilm --seconds 60

bench-isolation: setup ## one of four models is killed every two seconds for a minute: what the others notice
	@$(BIN)/python -m bench.isolation --seconds 60

bench-hostile: setup ## a single row beside another caller's wide batches, hits beside the costliest bodies: what each costs
	@$(BIN)/python -m bench.hostile

chaos: setup ## ten minutes of faults at random instants under load (SEED=n): no wrong answer, errors, recovery, a table
	@$(BIN)/python -m tests.chaos --seconds 600 $(if $(SEED),--seed $(SEED))

chaos-purges: setup ## a million answers of two workers while things are purged: none older than a purge before it
	@$(BIN)/python -m tests.chaos.purges --operations 1000000

soak: setup ## ten minutes of mixed load: memory, descriptors, threads and rows in flight must be flat
	@$(BIN)/python -m tests.chaos.soak --seconds 600

verify-fleet: setup $(DEPLOY)/installed ## the chart's commands on three hosts of network namespaces over a Redis Cluster: rolling updates, loss of a host, under load (root)
	@$(BIN)/python -c "from tests.models_fixture import built_data; built_data('fingerprint')"
	@$(BIN)/python -m tests.fleet

verify-overload: setup ## FLUSHALL while four times as much is asked as the model can do, then normal load: when it is well again
	@$(BIN)/python -c "from tests.models_fixture import built_data; built_data('minilm')"
	@$(BIN)/python -m tests.overload

verify-jobs: setup ## 20,000 jobs while the workers and the queue's store are killed every two seconds, some of them poison
	@$(BIN)/python -m bench.verify_jobs

bench-jobs: setup ## jobs beside the synchronous path on the same rows, at saturation; what the queue costs beside a free model
	@$(BIN)/python -c "from tests.models_fixture import built_data; built_data('minilm', 'fingerprint')"
	@$(BIN)/python -m bench.jobs --model minilm --rows 32
	@$(BIN)/python -m bench.jobs --model fingerprint --rows 64 --requests 2000 --least 0.5

verify-kafka: setup ## 20,000 messages of a Kafka topic while two processes are killed, each time two seconds after the group has answered again, and the group changes; some are poison
	@$(BIN)/python -m bench.verify_kafka

bench-kafka: setup ## hits of `foreseen kafka` a second a core, and minilm by messages beside the synchronous path
	@$(BIN)/python -c "from tests.models_fixture import built_data; built_data('minilm', 'fingerprint')"
	@$(BIN)/python -m bench.kafka

mutants: setup ## mutation testing of key, entry, flight and answer cache (about 20 minutes); fails under 90 %
	@rm -rf mutants && $(BIN)/mutmut run > build/mutants.log 2>&1; $(BIN)/python -m tests.mutants

clean: ## remove the environment and what was built
	rm -rf $(VENV) $(TRITON) $(MLSERVER) $(TRITONSERVER) $(RAY) $(AIRFLOW) $(TORCH) $(KSERVE) $(KAFKA) $(SITE) $(DATA) build *.egg-info
