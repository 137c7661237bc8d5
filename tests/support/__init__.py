"""What several test files need.  Import it as ``support.tls``, ``support.records``, ..."""
