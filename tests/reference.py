"""Slow, obvious numpy: what the compiled core must agree with. float64 throughout."""

import numpy as np


def half_sweep(rows, other, shared, ridge, alpha, target):
    """(rows, F): the normal equations of every row, solved one by one.

    ``shared`` is the (F, F) part that all rows have in common, or its diagonal.
    """
    shared = np.diag(shared) if shared.ndim == 1 else shared
    out = np.zeros((len(rows), other.shape[1]))
    weights = np.ones(len(rows.items)) if rows.weights is None else rows.weights.astype(float)
    for u in range(len(rows)):
        events = range(rows.indptr[u], rows.indptr[u + 1])
        if not len(events):
            continue
        a = shared.astype(float) + ridge[u] * np.eye(other.shape[1])
        b = np.zeros(other.shape[1])
        for e in events:
            y = other[rows.items[e]].astype(float)
            a += alpha * weights[e] * np.outer(y, y)
            b += alpha * weights[e] * target * y
        out[u] = np.linalg.solve(a, b)
    return out


def conjugate_gradient(rows, other, shared, ridge, alpha, target, start, steps):
    """The same systems after ``steps`` textbook steps, preconditioned by diag(shared + ridge)."""
    out = np.zeros((len(rows), other.shape[1]))
    weights = np.ones(len(rows.items)) if rows.weights is None else rows.weights.astype(float)
    for u in range(len(rows)):
        part = slice(rows.indptr[u], rows.indptr[u + 1])
        if part.start == part.stop:
            continue
        y = other[rows.items[part]].astype(float)
        c = alpha * weights[part]
        d = shared.astype(float) + ridge[u]
        a = np.diag(d) + (y * c[:, None]).T @ y
        x = start[u].astype(float)
        r = (c * target) @ y - a @ x
        z = r / d
        p = z.copy()
        for _ in range(steps):
            if r @ z < 1e-20:
                break
            step = (r @ z) / (p @ a @ p)
            x += step * p
            new = r - step * (a @ p)
            p = new / d + (new @ (new / d)) / (r @ z) * p
            r, z = new, new / d
        out[u] = x
    return out


def objective(rows, users, items, *, alpha, target, unobserved, regularization, power):
    """DESIGN section 4, written out over the whole matrix."""
    weights = np.ones(len(rows.items)) if rows.weights is None else rows.weights.astype(float)
    fit = users.astype(float) @ items.astype(float).T
    total = unobserved * (fit**2).sum()
    taken = np.zeros(len(items))
    for u in range(len(rows)):
        for e in range(rows.indptr[u], rows.indptr[u + 1]):
            total += alpha * weights[e] * (target - fit[u, rows.items[e]]) ** 2
            taken[rows.items[e]] += 1
    for u in range(len(rows)):
        n = rows.indptr[u + 1] - rows.indptr[u]
        scale = (n + unobserved * len(items)) ** power
        total += regularization * scale * (users[u].astype(float) ** 2).sum()
    for i in range(len(items)):
        scale = (taken[i] + unobserved * len(users)) ** power
        total += regularization * scale * (items[i].astype(float) ** 2).sum()
    return total


def top_k(scores, k, exclude=None, allow=None):
    """(B, k) items and scores of a score matrix: sorted, padded with -1 / -inf."""
    items = np.full((len(scores), k), -1, np.int32)
    best = np.full((len(scores), k), -np.inf, np.float32)
    for b, row in enumerate(scores):
        left_out = set() if exclude is None else set(exclude[b])
        ranked = sorted(
            (-score, i)
            for i, score in enumerate(row)
            if i not in left_out and (allow is None or allow[i]) and score != -np.inf
        )
        for place, (score, i) in enumerate(ranked[:k]):
            items[b, place], best[b, place] = i, -score
    return items, best


def user_item_matrix(rows, n_items):
    """(U, I): what each row's events of an item weigh together."""
    x = np.zeros((len(rows), n_items))
    weights = np.ones(len(rows.items)) if rows.weights is None else rows.weights.astype(float)
    for u in range(len(rows)):
        for e in range(rows.indptr[u], rows.indptr[u + 1]):
            x[u, rows.items[e]] += weights[e]
    return x


def item_weights_ease(rows, n_items, regularization):
    """(I, I): B of Steck (arXiv 1905.03375), eq. 8, from the inverse of the whole matrix."""
    x = user_item_matrix(rows, n_items)
    p = np.linalg.inv(x.T @ x + regularization * np.eye(n_items))
    b = np.eye(n_items) - p / np.diag(p)
    np.fill_diagonal(b, 0)
    return b


def history_scores(table, histories, half_life):
    """(B, I): the rows of ``table`` (I, I) summed over each history, by weight and recency."""
    out = np.zeros((len(histories), len(table)))
    plain = np.ones(len(histories.items)) if histories.weights is None else histories.weights
    for row in range(len(histories)):
        end = histories.indptr[row + 1]
        for e in range(histories.indptr[row], end):
            recency = 1.0 if half_life is None else 0.5 ** ((end - 1 - e) / half_life)
            out[row] += plain[e] * recency * table[histories.items[e]]
    return out


def item_weights_knn(rows, n_items, neighbours, shrinkage):
    """(I, I): shrunk cosines, of every row the largest kept; of equal ones the lower codes."""
    x = user_item_matrix(rows, n_items)
    products, lengths = x.T @ x, np.linalg.norm(x, axis=0)
    table = np.zeros((n_items, n_items))
    for a in range(n_items):
        others = [b for b in range(n_items) if b != a and products[a, b] > 0]
        alike = {b: products[a, b] / (lengths[a] * lengths[b] + shrinkage) for b in others}
        for b in sorted(others, key=lambda b: (-alike[b], b))[:neighbours]:
            table[a, b] = alike[b]
    return table


def item_weights_linear_transitions(rows, n_items, regularization, memory):
    """(I, I): every state and every next item written out, then the normal equations."""
    states, nexts = [], []
    for u in range(len(rows)):
        items = rows.items[rows.indptr[u] : rows.indptr[u + 1]]
        for here in range(1, len(items)):
            state = np.zeros(n_items)
            for before in range(here):
                state[items[before]] += 0.5 ** ((here - 1 - before) / memory)
            states.append(state)
            nexts.append(np.eye(n_items)[items[here]])
    if not states:
        return np.zeros((n_items, n_items))
    s, e = np.array(states), np.array(nexts)
    return np.linalg.solve(s.T @ s + regularization * np.eye(n_items), s.T @ e)
