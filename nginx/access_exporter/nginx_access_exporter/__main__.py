"""`python -m nginx_access_exporter` is the same as the command `nginx-access-exporter`."""

import sys

from nginx_access_exporter.exporter import main

sys.exit(main())
