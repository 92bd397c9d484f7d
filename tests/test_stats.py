"Comparisons: SciPy's numbers, false alarms on data in which nothing differs, and inputs that can't be compared."
import numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from scipy import stats
from pets_nb.engine.stats import Comparison, _holm, compare, standard_error, wilson

rates = st.floats(0, 1)

@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(rates, rates), min_size=2, max_size=8))
def test_one_comparison_is_the_paired_t_test(pairs):
    a,b = np.array(pairs).T
    row = compare(dict(a=a, b=b)).table.loc['b']
    d = b-a
    if d.std(ddof=1)/len(d)**0.5<1e-9: return
    ref = stats.ttest_rel(b, a)
    low,high = ref.confidence_interval()
    np.testing.assert_allclose([row.p, row['p adjusted'], row.low/100, row.high/100], [ref.pvalue, ref.pvalue, low, high], rtol=1e-6, atol=1e-9)
    assert row.verdict==('higher' if low>0 else 'lower' if high<0 else f"we can't tell apart with these {len(d)} seeds (the interval is {100*low:.1f} to {100*high:.1f})")

@settings(deadline=None)
@given(st.lists(st.one_of(rates, st.just(float('nan'))), min_size=1, max_size=9))
def test_holm(ps):
    ps = np.array(ps)
    adjusted,alphas = _holm(ps, 0.05)
    known = np.sort(ps[~np.isnan(ps)])
    expected,top = {},0
    for i,p in enumerate(known): top = expected[p] = max(top, min(1, p*(len(known)-i)))
    for p,a,alpha in zip(ps, adjusted, alphas):
        assert np.isnan(a) if np.isnan(p) else a>=p and a<=expected[p]+1e-12
        if not np.isnan(p): assert (p<alpha)==(a<0.05) # the interval excludes zero exactly when Holm rejects

def test_the_order_of_recipes_and_seeds_does_not_matter():
    rows = [dict(recipe=r, seed=s, error=e) for r,es in dict(a=[.1,.12,.11], b=[.2,.21,.25]).items() for s,e in enumerate(es)]
    table = pd.DataFrame(rows)
    mixed = pd.concat([table[table.recipe=='a'].iloc[::-1], table[table.recipe=='b']])
    pd.testing.assert_frame_equal(compare(table).table, compare(mixed).table)
    pd.testing.assert_frame_equal(compare(table).table, compare(table.pivot(index='seed', columns='recipe', values='error')).table, check_names=False)
    pd.testing.assert_frame_equal(compare(table).table, compare(dict(a=[.1,.12,.11], b=[.2,.21,.25])).table)

def test_the_others_with_the_first_only():
    c = compare(dict(a=[.1,.2], b=[.3,.4], c=[.2,.3]), n=100)
    assert list(c.differences)==['b','c'] and c.table.verdict['a']=='reference' and np.isnan(c.table.p['a'])
    assert c.table.se['a']==pytest.approx(100*standard_error(.15, 100))
    assert '2 seeds, 100 test images' in repr(c) and '<table' in c._repr_html_() and '<th></th>' not in c._repr_html_()

def test_equal_differences():
    assert compare(dict(a=[.1,.2], b=[.1,.2])).table.verdict['b']=="we can't tell apart with these 2 seeds (the interval is 0.0 to 0.0)"
    table = compare(dict(a=[.1,.2], b=[.3,.4])).table
    assert table.verdict['b']=="we can't tell apart with these 2 seeds (all differences are equal)" and np.isnan(table.p['b'])

bad = {
    'at least two': dict(a=[.1,.2]), 'expected at least two': {}, 'b, seed 2': dict(a=[.1,.2,.3], b=[.1,.2]), 'divide percent by 100): b, seed 1: 20': dict(a=[.1,.2], b=[.1,20]),
    'one seed says nothing': dict(a=[.1], b=[.2]), 'a, seed 1: nan': dict(a=[.1,None], b=[.1,.2]), 'seeds that occur twice: a, seed 1': dict(a=pd.Series([.1,.2], [1,1]), b=pd.Series([.1], [1])),
}
@pytest.mark.parametrize('message', bad)
def test_runs_that_cannot_be_compared(message):
    with pytest.raises(ValueError, match=message.replace(')', r'\)').replace('(', r'\(')): compare(bad[message])

@pytest.mark.parametrize('kwargs', [dict(alpha=0), dict(alpha=1.), dict(test_fraction=0), dict(test_fraction=1.2), dict(n=0)])
def test_arguments(kwargs):
    with pytest.raises(ValueError): compare(dict(a=[.1,.2], b=[.2,.3]), **kwargs)

def test_wilson_and_standard_error():
    for k,n in ((0,10), (3,10), (10,10), (370,3669)):
        low,high = wilson(k, n)
        assert 0<=low<=k/n<=high<=1
    assert wilson(5, 74)[1]==pytest.approx(0.1478, abs=2e-3)
    for k,n in ((-1,5), (6,5), (0,0)):
        with pytest.raises(ValueError): wilson(k, n)
    np.testing.assert_allclose(standard_error(np.array([0, .5, 1]), 25), [0, .1, 0])

def _runs(right):
    "A table of runs from arrays (seeds, images) by recipe"
    return pd.DataFrame([dict(recipe=k, seed=s, error=1-o.mean(), right=o) for k,v in right.items() for s,o in enumerate(v)])

def test_one_run_each_is_mcnemar():
    rng = np.random.default_rng(0)
    a,b = rng.random((2,1,400))<0.8
    row = compare(_runs(dict(a=a, b=b))).table.loc['b']
    only = int((a&~b).sum()),int((~a&b).sum())
    assert row.p==pytest.approx(stats.binomtest(only[0], sum(only)).pvalue)
    assert row.low<100*(only[0]-only[1])/400<row.high
    same = compare(_runs(dict(a=a, b=a))).table.loc['b']
    assert same.p==1 and same.low==same.high==0

def test_different_test_sets_are_refused():
    right = np.ones(10, bool)
    runs = pd.DataFrame([dict(recipe=r, seed=s, error=.1, right=right[:10-s]) for r in 'ab' for s in (0,1)])
    with pytest.raises(ValueError, match=r'different numbers of test images: \[9, 10\]'): compare(runs)

def overlapping_splits(seed, k=5, n=60, d=8, held=12):
    "Errors of two equally good recipes (nearest centroid on either half of exchangeable features) over random splits of one data set"
    rng = np.random.default_rng(seed)
    y = np.arange(n)%2
    x = rng.normal(size=(n,2*d)) + 0.35*y[:,None]
    errors = dict(a=[], b=[])
    for _ in range(k):
        order = rng.permutation(n)
        test,train = order[:held],order[held:]
        for name,part in (('a', x[:,:d]), ('b', x[:,d:])):
            c0,c1 = (part[train][y[train]==o].mean(0) for o in (0,1))
            predicted = ((part[test]-c1)**2).sum(1)<((part[test]-c0)**2).sum(1)
            errors[name].append((predicted!=y[test]).mean())
    return errors

def test_false_alarms_on_overlapping_splits():
    "The plain t test is wrong far more often than it says; with Nadeau and Bengio's factor it isn't"
    naive,corrected = [],[]
    for seed in range(300):
        e = overlapping_splits(seed)
        naive.append(compare(e).table.p['b']<0.05)
        corrected.append(compare(e, test_fraction=0.2).table.p['b']<0.05)
    assert np.mean(naive)>0.12 and np.mean(corrected)<0.07

def one_test_set(rng, k=3, n=300):
    "Two equally good recipes on one test set: each image is easier for one of them, each seed has its luck"
    hard,luck = rng.normal(size=(2,1,n)),0.05*rng.normal(size=(2,k,1))
    both = rng.normal(size=(1,n))
    return {name: both + 0.8*hard[i] + luck[i] + 0.3*rng.normal(size=(k,n))>-1 for i,name in enumerate('ab')}

def test_false_alarms_on_one_test_set():
    "Seeds alone say nothing about other test images: intervals that cover both keep what they promise"
    rng = np.random.default_rng(3)
    alone,both = [],[]
    for _ in range(300):
        runs = _runs(one_test_set(rng))
        alone.append(compare(runs.drop(columns='right')).table.p['b']<0.05)
        both.append(compare(runs).table.p['b']<0.05)
    assert np.mean(alone)>0.12 and np.mean(both)<0.07

def test_false_alarms_among_several_recipes():
    rng = np.random.default_rng(4)
    alarms = 0
    for _ in range(200):
        e = rng.normal(.2, .02, size=(4,5)).clip(0,1)
        alarms += compare(dict(zip('abcd', e))).table.verdict.isin(['lower','higher']).any()
    assert alarms/200<0.08

def test_the_figure_has_the_adjusted_intervals():
    c = compare(dict(a=[.1,.12,.11], b=[.2,.21,.25], c=[.11,.12,.13]))
    ax = c.plot()
    drawn = [l.get_xdata() for l in ax.lines if len(l.get_xdata())==2 and l.get_linestyle()=='-' and l.get_marker()=='None'][:2]
    np.testing.assert_allclose(drawn, c.table.loc[['b','c'],['low','high']].values)
    assert 'Holm' in ax.get_xlabel()

def test_false_claims_of_equivalence_on_overlapping_splits():
    "The true difference is the bound: the plain interval claims too often that it is smaller"
    naive,corrected = [],[]
    for seed in range(300):
        e = {k: np.array(v)/2 + 0.2*(k=='b') for k,v in overlapping_splits(seed).items()}
        naive.append(compare(e).equivalent(0.2).verdict['b']=='equivalent within 20 points')
        corrected.append(compare(e, test_fraction=0.2).equivalent(0.2).verdict['b']=='equivalent within 20 points')
    assert np.mean(naive)>0.08 and 0<np.mean(corrected)<0.06

def shifted(rng, bound, k=3, n=600):
    "Two recipes on one test set whose true error rates, over all images and seeds, differ by `bound`"
    sd = (1 + 0.8**2 + (0.05*(k>1))**2 + 0.3**2)**0.5
    at = dict(a=-1., b=sd*stats.norm.ppf(stats.norm.cdf(-1/sd)+bound))
    hard,luck,both = rng.normal(size=(2,1,n)),0.05*(k>1)*rng.normal(size=(2,k,1)),rng.normal(size=(1,n)) # one run says nothing about other seeds
    return {o: both + 0.8*hard[i] + luck[i] + 0.3*rng.normal(size=(k,n))>at[o] for i,o in enumerate('ab')}

@pytest.mark.parametrize('k', [1, 3])
@pytest.mark.parametrize('sign', [1, -1])
def test_false_claims_of_equivalence_on_one_test_set(k, sign):
    rng,claims = np.random.default_rng(5),[]
    for _ in range(300):
        claims.append(compare(_runs(shifted(rng, sign*0.1, k))).equivalent(0.1).verdict['b']=='equivalent within 10 points')
    assert 0<np.mean(claims)<0.07

def test_one_run_whose_errors_all_go_one_way():
    "McNemar's interval ends at the share of images that differ, which is random itself"
    rng,claims = np.random.default_rng(6),[]
    for _ in range(300):
        a = np.ones((1,1000), bool)
        claims.append(compare(_runs(dict(a=a, b=rng.random((1,1000))>0.03))).equivalent(0.03).verdict['b'].startswith('equi'))
    assert 0<np.mean(claims)<0.08

def test_equivalence_is_claimed_on_clear_data():
    rng = np.random.default_rng(7)
    for k in (1, 3):
        claims = [compare(_runs(shifted(rng, 0, k, 3669))).equivalent(0.05).verdict['b'] for _ in range(20)]
        assert claims.count('equivalent within 5 points')>=19
    c = compare(dict(a=[.1,.11,.12], b=[.101,.111,.119], c=[.1,.2,.3]))
    assert c.equivalent(.01).verdict['b']=='equivalent within 1 point' and c.equivalent(.01).verdict['c'].startswith('not shown (the interval is')

def test_several_comparisons_widen_the_intervals():
    one,two = compare(dict(a=[.1,.11,.12], b=[.101,.112,.119])),compare(dict(a=[.1,.11,.12], b=[.101,.112,.119], c=[.1,.2,.3]))
    reach = [o.equivalent(.01).eval('high-low')['b'] for o in (one, two)]
    assert reach[1]/reach[0]==pytest.approx(stats.t.ppf(.975, 2)/stats.t.ppf(.95, 2))

def test_no_spread_is_no_evidence():
    why,answers = 'not shown (no spread to judge by)',np.random.default_rng(8).random((3,400))<0.8
    for runs in (dict(a=[.1,.2,.1], b=[.1,.2,.1]), dict(a=[.1,.2], b=[.3,.4]), _runs(dict(a=answers, b=answers)), _runs(dict(a=answers[:1], b=answers[:1]))):
        assert compare(runs).equivalent(.5).verdict['b']==why
    for bound in (0, 1, 1.5, -1, float('nan')):
        with pytest.raises(ValueError, match='bound is'): compare(dict(a=[.1,.2], b=[.1,.2])).equivalent(bound)
