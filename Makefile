# Builds sleave's tool and the object that it preloads, and puts them where they find each other.
#
#   make                        both, in target/release
#   make install                into PREFIX (/usr/local), below DESTDIR if that is set
#   make uninstall
#   make test                   the tests, as the README has them

PREFIX ?= /usr/local
CARGO ?= cargo
TARGET := target/release

all:
	$(CARGO) build --release -p sleave-cli -p sleave-preload

install: all
	install -D -m 755 $(TARGET)/sleave $(DESTDIR)$(PREFIX)/bin/sleave
	install -D -m 755 $(TARGET)/libsleave_preload.so $(DESTDIR)$(PREFIX)/lib/libsleave_preload.so

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/sleave $(DESTDIR)$(PREFIX)/lib/libsleave_preload.so

test:
	$(CARGO) test --workspace

.PHONY: all install uninstall test
