"""The recommender that the service is tested with."""

import hybridrec as hr


def make_engine(encoder, **options):
    """Every stage of a two-stage recommender, over the tiny random encoder."""
    return hr.HybridRecommender(
        [hr.ALS(factors=8, epochs=5), hr.ItemTransitions(), hr.TextRecall(encoder)],
        hr.CrossEncoder(encoder, history=4, finetuning={"negatives": 4}, max_item_tokens=12),
        hr.LinearFusion(),
        depth=20,
        rerank_depth=10,
        reranker_examples=100,
        **options,
    )
