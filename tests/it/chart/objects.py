"""Reads the YAML of a chart from standard input, checks every object strictly against the schemas of the versions of Kubernetes
that are given as arguments, and prints all objects as JSON."""

import json
import sys

import kubernetes_validate
import yaml

# Groups of custom resources, which have no schema here.
FOREIGN = {"monitoring.coreos.com/v1", "cert-manager.io/v1"}


class Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: a name that is given twice is an error."""

    def construct_mapping(self, node, deep=False):
        names = [self.construct_object(name, deep=deep) for name, _ in node.value]
        if len(names) != len(set(names)):
            raise yaml.constructor.ConstructorError(None, None, f"a name is given twice in {names}", node.start_mark)
        return super().construct_mapping(node, deep)


objects = [found for found in yaml.load_all(sys.stdin, Loader) if found is not None]
for found in objects:
    if found["apiVersion"] in FOREIGN:
        continue
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(part) for part in error.path)
            sys.exit(f"Kubernetes {version}: {found['kind']} {found['metadata']['name']}: {where}: {error.message}")
json.dump(objects, sys.stdout)
