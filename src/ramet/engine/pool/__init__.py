"""The pool: VMMs made ahead, and forks that claim them."""
