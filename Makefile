# Everything here sets up what it needs: Debian packages by apt-get, Python packages in .venv.

PYTHON ?= python3
PREFIX = /usr/local
DESTDIR =
# The user that runs it, and the group that may read its settings, as the unit files name them
ACCOUNT = k2hr3-osnl
GROUP = k2hr3
VENV = .venv
BIN = $(VENV)/bin
PREDECESSOR = .venv-predecessor
CLOUD = .venv-cloud
COMMA = ,
OPENSTACK = keystone==30.0.0 openstack-placement==16.0.0 glance==33.0.0 neutron==29.0.0 \
	nova==34.0.0 PyMySQL waitress
INSTALLED = $(DESTDIR)$(PREFIX)
UNITS = $(INSTALLED)/lib/systemd/system
UNIT_FILES = k2hr3-osnl.service k2hr3-osnl@.service \
	$(addprefix k2hr3-osnl-catch-up@,.service 3h.timer 3d.timer)
SETTINGS = $(DESTDIR)/etc/k2hr3/k2hr3_osnl.ini
SUDO = $(if $(filter-out 0,$(shell id -u)),sudo)
# With RELEASE=trixie or RELEASE=sid everything runs on that Debian release's RabbitMQ.
RELEASES = trixie sid
BROKER = $(if $(RELEASE),.brokers/$(RELEASE)/ready)
export LAB_BROKER = $(if $(RELEASE),$(CURDIR)/.brokers/$(RELEASE)/bin)
# What can differ from one RabbitMQ to another.
SMOKE = every_deletion_from_every_driver_is_made \
	any_exchange_and_default_queue_is_used_as_the_service_made_it \
	an_attempt_that_fails_moves_the_deletion_to_the_retry_queue \
	a_malformed_notification_becomes_a_dead_letter_with_a_reason \
	queues_of_an_earlier_run_are_used_as_they_are \
	deletions_arrive_over_tls recovers_with_deliveries_held stops_in_the_middle_of_a_load \
	drain_makes_what_is_queued_and_every_retry_whether_due_or_not \
	check_is_all_ok_where_a_listener_works dead_letters_are_replayed_to_where_they_came_from
SMOKE_ROWS = alarm-api closed-connections consumer-timeout
DEPENDENCIES = $(shell sed -n '/^\# dependencies/s/[^"]*\("[^]]*\).*/\1/p' k2hr3_osnl.py | tr -d ',')

.PHONY: help demo unit test smoke mutants faults storm cloud bench lint matrix broker install uninstall clean

help:  ## This list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 20

$(VENV)/ready: k2hr3_osnl.py lab/requirements.txt lab/provide.sh
	@lab/provide.sh rabbitmq-server python3-venv
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing Python packages into $(VENV)"
	@$(BIN)/pip install -q --disable-pip-version-check $(DEPENDENCIES) -r lab/requirements.txt
	@touch $@

$(RELEASES:%=.brokers/%/ready): .brokers/%/ready: lab/release.sh lab/debootstrap.sh
	@lab/release.sh $* .brokers/$*
	@touch $@

.base/ready: lab/base.sh lab/debootstrap.sh
	@lab/base.sh .base
	@touch $@

$(PREDECESSOR)/ready:
	@lab/provide.sh python3-venv
	@test -x $(PREDECESSOR)/bin/pip || $(PYTHON) -m venv $(PREDECESSOR)
	@echo "installing k2hr3-osnl 1.0.8 into $(PREDECESSOR)"
	@$(PREDECESSOR)/bin/pip install -q --disable-pip-version-check k2hr3-osnl==1.0.8
	@touch $@

$(CLOUD)/ready:
	@lab/provide.sh python3-venv
	@test -x $(CLOUD)/bin/pip || $(PYTHON) -m venv $(CLOUD)
	@echo "installing OpenStack into $(CLOUD), which takes some minutes"
	@$(CLOUD)/bin/pip install -q --disable-pip-version-check $(OPENSTACK)
	@rm -rf $(CLOUD)/tables
	@touch $@

demo: $(VENV)/ready $(BROKER)  ## Instances are deleted, and K2HR3 hears of it; with its API down, too
	@$(BIN)/python -m lab.demo

unit: $(VENV)/ready  ## The tests that need no broker and little time
	$(BIN)/python -m pytest -m "not broker and not slow" test_k2hr3_osnl.py

test: $(VENV)/ready .base/ready $(BROKER)  ## All tests, on a real broker; K=word: those with it in their name
	@lab/provide.sh prometheus prometheus-node-exporter python3-openstacksdk \
		systemd-container podman runc
	$(BIN)/python -m pytest $(if $(K),-k "$(K)") \
		$(if $(RELEASE),test_k2hr3_osnl.py lab lab/broker_tests.py)

smoke: $(VENV)/ready $(BROKER)  ## RELEASE=trixie|sid: the tests and faults that depend on the RabbitMQ
	$(BIN)/python -m pytest $(SMOKE:%=test_k2hr3_osnl.py::test_%) $(if $(RELEASE),lab/broker_tests.py)
	@$(BIN)/python -m lab.faults --quick $(SMOKE_ROWS)

mutants: $(VENV)/ready  ## Mistakes planted in the module, and which rule of the model finds each
	@$(BIN)/python -m lab.mutants

faults: $(VENV)/ready $(PREDECESSOR)/ready $(BROKER)  ## The fault table; QUICK=1: a short one; ROW=name: one
	@$(BIN)/python -m lab.faults $(if $(QUICK),--quick) $(ROW)

storm: $(VENV)/ready $(BROKER)  ## Faults that overlap, by a seed: SEED=n MINUTES=m; QUICK=1: a short form
	@$(BIN)/python -m lab.storm $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED)) \
		$(if $(MINUTES),--minutes $(MINUTES))

cloud: $(VENV)/ready $(CLOUD)/ready  ## Servers of a real OpenStack come and go; QUICK=1: a short one
	@lab/provide.sh mariadb-server-core mariadb-client-core
	@$(BIN)/python -m lab.cloud $(if $(QUICK),--quick)

bench: $(VENV)/ready $(PREDECESSOR)/ready $(BROKER)  ## Speed beside the predecessor; QUICK=1: a short one
	@test -x /usr/sbin/nginx || lab/provide.sh nginx-light
	@$(BIN)/pip install -q --disable-pip-version-check matplotlib
	@$(BIN)/python -m lab.bench $(if $(QUICK),--quick) $(BENCH)

lint: $(VENV)/ready  ## ruff (rules and layout) and mypy --strict
	$(BIN)/ruff check . contrib/k2hr3-osnl-catch-up
	$(BIN)/ruff format --check . contrib/k2hr3-osnl-catch-up
	$(BIN)/mypy k2hr3_osnl.py test_k2hr3_osnl.py lab
	$(BIN)/mypy contrib/k2hr3-osnl-catch-up

matrix: export PATH := $(subst $() ,:,$(wildcard $(HOME)/.pyenv/versions/3.*/bin) $(CURDIR)/$(BIN)):$(PATH)
matrix: $(VENV)/ready $(RELEASES:%=.brokers/%/ready)  ## The tests that depend on versions, on all of them; QUICK=1: on the ends
	@lab/provide.sh python3-pika python3-urllib3
	$(BIN)/python -m tox -c .tox.ini run-parallel -p 2 --parallel-no-spinner \
		$(if $(QUICK),-e py39-oldest$(COMMA)py313-newest$(COMMA)debian)
	@for release in $(RELEASES); do echo "Debian $$release, with its own RabbitMQ:"; \
		PYTHONPATH=$$(echo $(CURDIR)/$(VENV)/lib/python3.*/site-packages) .brokers/$$release/run \
		/usr/bin/python3 -m tox -c .tox.ini run -q -e debian --workdir .venv-matrix/$$release || exit 1; done

broker: $(or $(BROKER),$(RELEASES:%=.brokers/%/ready))  ## RELEASE=trixie|sid: that Debian's RabbitMQ; so have demo, test, faults, storm, bench

install:  ## PREFIX=/usr/local DESTDIR=: k2hr3-osnl, its settings (kept if there), unit files and user
	install -D -m 755 k2hr3_osnl.py $(INSTALLED)/bin/k2hr3-osnl
	@sed -i '1s|.*|#!/usr/bin/python3|' $(INSTALLED)/bin/k2hr3-osnl
	install -m 755 contrib/k2hr3-osnl-catch-up $(INSTALLED)/bin/k2hr3-osnl-catch-up
	install -d $(UNITS)
	install -m 644 $(addprefix contrib/,$(UNIT_FILES)) $(UNITS)
	@sed -i 's|/usr/local/bin|$(PREFIX)/bin|g' $(filter %.service,$(addprefix $(UNITS)/,$(UNIT_FILES)))
	@test -n "$(DESTDIR)" || getent group $(GROUP) >/dev/null || (set -x; \
		groupadd --system $(GROUP))
	@test -n "$(DESTDIR)" || getent passwd $(ACCOUNT) >/dev/null || (set -x; \
		useradd --system --gid $(GROUP) --home-dir / --shell /usr/sbin/nologin $(ACCOUNT))
	@test -e $(SETTINGS) || (set -x; \
		install -D -m 640 $(if $(DESTDIR),,-g $(GROUP)) k2hr3_osnl.ini $(SETTINGS))

uninstall:  ## The same without the settings and the user, which are kept
	rm -f $(addprefix $(INSTALLED)/bin/,k2hr3-osnl k2hr3-osnl-catch-up) \
		$(addprefix $(UNITS)/,$(UNIT_FILES))
	@echo "kept: $(SETTINGS)$(if $(DESTDIR),,, the user $(ACCOUNT), the group $(GROUP))"

clean:  ## Remove what these commands made
	@for each in .brokers .base; do \
		test ! -e $$each || $(SUDO) rm -rf --one-file-system $$each; done
	rm -rf $(VENV) $(PREDECESSOR) $(CLOUD) .venv-matrix .faults .mypy_cache .ruff_cache .pytest_cache .hypothesis
