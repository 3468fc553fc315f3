// What the lists say, worked out: no document in here.

/** The order of the stages; whatever else the service names comes after. */
const STAGES = ["recall", "fused", "reranked", "answer"];
/** Of the largest value: what differs by less is rounding. */
const EVEN = 1e-9;

/** The items' places through the stages: [{stage, rank, moved}], `moved` upwards since the last. */
export function path(ranks) {
  const others = Object.keys(ranks).filter((name) => !STAGES.includes(name));
  const names = [...STAGES, ...others].filter((name) => Object.hasOwn(ranks, name));
  return names.map((stage, place) => ({
    stage,
    rank: ranks[stage],
    moved: place === 0 ? 0 : ranks[names[place - 1]] - ranks[stage],
  }));
}

/**
 * Every signal over one list: [{name, values, standard, constant}] in the order in which they were
 * told. `standard` is (value - mean) / deviation over the items shown that have it, else null.
 */
export function signals(items) {
  const names = new Set(items.flatMap((item) => Object.keys(item.why?.signals ?? {})));
  return [...names].map((name) => {
    const values = items.map((item) => finite(item.why?.signals?.[name]));
    const there = values.filter((value) => value !== null);
    const mean = there.reduce((sum, value) => sum + value, 0) / there.length;
    const spread = Math.sqrt(
      there.reduce((sum, value) => sum + (value - mean) ** 2, 0) / there.length,
    );
    const constant = !(spread > EVEN * Math.max(...there.map(Math.abs)));
    const standard = values.map((value) =>
      value === null || constant ? null : (value - mean) / spread,
    );
    return { name, values, standard, constant };
  });
}

const finite = (value) => (Number.isFinite(value) ? value : null);

/**
 * Two lists against each other: how many they share, how far those moved on average, and for each
 * list a map from an item's id to its place in the other (none where it is not there).
 */
export function compared(first, second) {
  const places = [first, second].map(
    (items) => new Map(items.map((item) => [String(item.item), item.rank])),
  );
  const both = [...places[0].keys()].filter((item) => places[1].has(item));
  const moves = both.map((item) => Math.abs(places[0].get(item) - places[1].get(item)));
  return {
    shared: both.length,
    onlyFirst: first.length - both.length,
    onlySecond: second.length - both.length,
    meanMove: both.length ? moves.reduce((sum, move) => sum + move, 0) / both.length : 0,
    sameOrder: both.length === first.length && first.length === second.length
      && moves.every((move) => move === 0),
    elsewhere: [places[1], places[0]],
  };
}
