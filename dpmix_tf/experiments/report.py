"""Tables and pictures of an experiment."""


def write_report(study, records, root):
    """Later."""
