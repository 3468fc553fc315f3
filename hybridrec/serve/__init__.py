"""The service: a recommend API around a model folder (``hybridrec serve``)."""
