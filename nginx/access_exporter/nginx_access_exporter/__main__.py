"""`python -m nginx_access_exporter`: the same as the command `nginx-access-exporter`."""

from nginx_access_exporter.exporter import main

main()
