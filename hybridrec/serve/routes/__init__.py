"""The paths of the API: what comes in is checked by the schema, what is done is the service's."""
