"""C++ source of the tensor products of `fused`, unrolled for one set of couplings.

A compiler of tensor programs stores intermediates of every edge and channel; these kernels keep
them in registers and read each neighbour once. The inner loop runs over channels, a register full
at a time (vector types of GCC and Clang). The source needs the C++ standard library and OpenMP
alone, so it builds in seconds and outlives versions of torch.
"""

from __future__ import annotations

from ase_bayesmlip.nn.stacked.couplings import Couplings
from ase_bayesmlip.nn.stacked.radial_table import GRID_SCALE


def prelude(real: str, channels: int, cutoff: float) -> str:
    """What all kernels share: types, and where a distance lies in a radial table."""
    return f"""#include <algorithm>
#include <cstdint>
#include <cstring>
using real = {real};
constexpr int64_t C = {channels};

#if defined(__AVX512F__)
constexpr int64_t REGISTER = 64;
#elif defined(__AVX__)
constexpr int64_t REGISTER = 32;
#else
constexpr int64_t REGISTER = 16;
#endif
// L channels at a time: the largest power of two that divides them and fits into a register. Odd
// numbers of channels are slow.
constexpr int64_t L = std::min(C & -C, REGISTER / int64_t(sizeof(real))), V = C / L;
typedef real vec __attribute__((vector_size(L * sizeof(real)), aligned(sizeof(real)), may_alias));

static inline real total(const vec& x) {{
    const real* lane = (const real*)&x;
    real sum = 0;
    #pragma omp simd reduction(+ : sum)
    for (int64_t l = 0; l < L; ++l) sum += lane[l];
    return sum;
}}

// Weights of step, left and right slope in a cubic Hermite table, see radial_table.py; the value
// has the left value beside them.
struct Hermite {{ int64_t row; real value[3], slope[3]; }};

static inline Hermite hermite(real r, int64_t intervals) {{
    const real stretch = intervals * real({(cutoff + GRID_SCALE) / cutoff!r});
    const real shifted = r + real({GRID_SCALE!r});
    const real place = std::min(real(intervals), stretch * r / shifted);  // NaN too
    const int64_t row = int64_t(place);
    const real t = place - real(row), rate = stretch * real({GRID_SCALE!r}) / (shifted * shifted);
    const real t2 = t * t, t3 = t2 * t;
    return {{row,
            {{3 * t2 - 2 * t3, t - 2 * t2 + t3, t3 - t2}},
            {{rate * (6 * t - 6 * t2), rate * (1 - 4 * t + 3 * t2), rate * (3 * t2 - 2 * t)}}}};
}}
"""


def neighbor_kernels(name: str, table: Couplings) -> str:
    """Forward and backward of `products.neighbor_rows`; see `operators` for several gradients."""
    return _neighbor_forward(name, table) + _neighbor_backward(name, table)


def channel_kernels(name: str, table: Couplings) -> str:
    """Forward and backward of `fused.channel_rows`."""
    return _channel_forward(name, table) + _channel_backward(name, table)


_GEOMETRY = """const real* features, const real* edge, const real* distances,
    const int64_t* neighbor, const int64_t* count, const real* radial,
    int64_t members, int64_t n_atoms, int64_t width, int64_t intervals"""


def _lookup(table: Couplings) -> str:
    """Statements that find neighbour k of atom i and its row in the radial table of member m."""
    return f"""
            const int64_t place = i * width + k, j = neighbor[place];
            const Hermite at = hermite(distances[place], intervals);
            if (at.row >= intervals) continue;
            const real* e = edge + place * {len(table.entries())};
            const vec* s = (const vec*)(features + (m * n_atoms + j) * {table.n_left} * C);
            const vec* f =
                (const vec*)(radial + (m * (intervals + 2) + at.row) * {3 * table.n_paths} * C);"""


def _radial(kind: str, path: int, n_paths: int) -> str:
    """Value or slope of a radial function at channels c; rows hold value, step and slope."""
    places = [n_paths + path, 2 * n_paths + path, 5 * n_paths + path]
    terms = [f"at.{kind}[{q}] * f[{place} * V + c]" for q, place in enumerate(places)]
    if kind == "value":
        terms.insert(0, f"f[{path} * V + c]")
    return " + ".join(terms)


def _neighbor_forward(name: str, table: Couplings) -> str:
    place = {entry: column for column, entry in enumerate(table.entries())}
    lines = [
        f"const vec w{p} = {_radial('value', p, table.n_paths)};" for p in range(table.n_paths)
    ]
    lines += [f"const vec s{a} = s[{a} * V + c];" for a in range(table.n_left)]
    for number, row in enumerate(table.rows):
        terms = " + ".join(f"e[{place[number, a]}] * s{a}" for a in row.left_components())
        lines.append(f"sum[{number} * V + c] += w{row.path} * ({terms});")
    body = "\n                ".join(lines)
    n_rows = len(table.rows)
    return f"""
extern "C" void {name}_forward({_GEOMETRY}, real* rows) {{
    #pragma omp parallel for collapse(2) schedule(static)
    for (int64_t m = 0; m < members; ++m)
    for (int64_t i = 0; i < n_atoms; ++i) {{
        alignas(64) vec sum[{n_rows} * V] = {{}};
        for (int64_t k = 0; k < count[i]; ++k) {{{_lookup(table)}
            for (int64_t c = 0; c < V; ++c) {{
                {body}
            }}
        }}
        std::memcpy(rows + (m * n_atoms + i) * {n_rows} * C, sum, sizeof(sum));
    }}
}}
"""


def _neighbor_backward(name: str, table: Couplings) -> str:
    """Derivatives by vectors, and by features where SENT: the first layer's are constant.

    Gradient q belongs to member q % members. A null `to_features` asks for none by features: it is
    what `operators` passes for an empty tensor.
    """
    n_rows, turned = len(table.rows), _turned(table)
    lines = [f"const vec s{a} = s[{a} * V + c];" for a in range(table.n_left)]
    for path in range(table.n_paths):
        lines += _path_slopes(table, path)
    body = "\n                ".join(lines)
    start = ", ".join(["stretched = {}", *(f"y{b} = {{}}" for b in turned)])
    sides = []
    for axis in range(3):
        terms = [f"slope[{3 * b + axis}] * y{b}" for b in turned]
        sides.append(f"total({' + '.join([f'slope[{axis}] * stretched', *terms])})")
    store = "\n            ".join(f"by_vector[{axis}] = {side};" for axis, side in enumerate(sides))
    arguments = f"""{_GEOMETRY},
    const real* harmonics, const real* slopes, const real* grad, int64_t n_grads,
    real* to_features, real* to_vectors"""
    names = ", ".join(part.split()[-1].lstrip("*") for part in arguments.split(","))
    return f"""
template <bool SENT> static void {name}_slopes({arguments}) {{
    #pragma omp parallel for collapse(2) schedule(static)
    for (int64_t q = 0; q < n_grads; ++q)
    for (int64_t i = 0; i < n_atoms; ++i) {{
        const int64_t m = q % members;
        alignas(64) vec sent[{table.n_left} * V] = {{}};
        const vec* g = (const vec*)(grad + (q * n_atoms + i) * {n_rows} * C);
        real* by_vectors = to_vectors + (q * n_atoms + i) * width * 3;
        std::memset(by_vectors, 0, width * 3 * sizeof(real));
        for (int64_t k = 0; k < count[i]; ++k) {{{_lookup(table)}
            const vec* gj = (const vec*)(grad + (q * n_atoms + j) * {n_rows} * C);
            const real* y = harmonics + place * {table.n_right};
            vec {start};
            for (int64_t c = 0; c < V; ++c) {{
                {body}
            }}
            const real* slope = slopes + place * {3 * table.n_right};
            real* by_vector = by_vectors + k * 3;
            {store}
        }}
        if constexpr (SENT)
            std::memcpy(to_features + (q * n_atoms + i) * {table.n_left} * C, sent, sizeof(sent));
    }}
}}

extern "C" void {name}_backward({arguments}) {{
    if (to_features)
        {name}_slopes<true>({names});
    else
        {name}_slopes<false>({names});
}}
"""


def _path_slopes(table: Couplings, path: int) -> list[str]:
    """Statements that add what one path contributes to the derivatives.

    With t_b = Σ g ∘ (∂row/∂Y_b), the derivative by the distance is Σ_b R' Y_b t_b, that by a
    harmonic R t_b.
    """
    place = {entry: column for column, entry in enumerate(table.entries())}
    rows = [(n, row) for n, row in enumerate(table.rows) if row.path == path]
    components = sorted({term.b for _, row in rows for term in row.terms})
    lines = [
        f"{{ const vec w = {_radial('value', path, table.n_paths)};",
        f"const vec d = {_radial('slope', path, table.n_paths)};",
    ]
    for b in components:
        terms = [
            (term.coefficient, f"g[{n} * V + c] * s{term.a}")
            for n, row in rows
            for term in row.terms
            if term.b == b
        ]
        lines.append(f"const vec t{b} = {_combination(terms)};")
    lines.append(f"stretched += d * ({' + '.join(f'y[{b}] * t{b}' for b in components)});")
    lines += [f"y{b} += w * t{b};" for b in components if table.right_degrees[b] > 0]
    sign = "+" if table.parity(rows[0][1]) > 0 else "-"
    lines.append("if constexpr (SENT) {")
    for a in sorted({a for _, row in rows for a in row.left_components()}):
        own = [(n, row) for n, row in rows if a in row.left_components()]
        sent = " + ".join(f"e[{place[n, a]}] * gj[{n} * V + c]" for n, _ in own)
        lines.append(f"sent[{a} * V + c] {sign}= w * ({sent});")
    return [*lines, "} }"]


def _combination(terms: list[tuple[float, str]]) -> str:
    """Σ coefficient · expression, with one multiplication for coefficients of one size."""
    groups: dict[float, list[str]] = {}
    for coefficient, expression in terms:
        size = next((s for s in groups if abs(s - abs(coefficient)) < 1e-12), abs(coefficient))
        sign = "-" if coefficient < 0 else "+"
        groups.setdefault(size, []).append(f"{sign} {expression}")
    return " + ".join(f"real({s!r}) * ({' '.join(group)})" for s, group in groups.items())


def _turned(table: Couplings) -> list[int]:
    """Harmonics that depend on the direction: Y_00 is a constant."""
    return [b for b, degree in enumerate(table.right_degrees) if degree > 0]


def _channel_forward(name: str, table: Couplings) -> str:
    lines = [f"const real x{a} = x[{a} * C + c];" for a in range(table.n_left)]
    lines += [f"const real y{b} = y[{b} * C + c];" for b in range(table.n_right)]
    for number, row in enumerate(table.rows):
        terms = " + ".join(f"real({t.coefficient!r}) * x{t.a} * y{t.b}" for t in row.terms)
        lines.append(f"out[{number} * C + c] = {terms};")
    body = "\n            ".join(lines)
    return f"""
extern "C" void {name}_forward(const real* left, const real* right, int64_t n, real* rows) {{
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) {{
        const real* __restrict x = left + i * {table.n_left} * C;
        const real* __restrict y = right + i * {table.n_right} * C;
        real* __restrict out = rows + i * {len(table.rows)} * C;
        #pragma omp simd
        for (int64_t c = 0; c < C; ++c) {{
            {body}
        }}
    }}
}}
"""


def _channel_backward(name: str, table: Couplings) -> str:
    lines = [f"const real x{a} = x[{a} * C + c];" for a in range(table.n_left)]
    lines += [f"const real y{b} = y[{b} * C + c];" for b in range(table.n_right)]
    terms = [(n, term) for n, row in enumerate(table.rows) for term in row.terms]
    for a in range(table.n_left):
        own = [f"real({t.coefficient!r}) * g[{n} * C + c] * y{t.b}" for n, t in terms if t.a == a]
        lines.append(f"to_x[{a} * C + c] = {' + '.join(own) or '0'};")
    for b in range(table.n_right):
        own = [f"real({t.coefficient!r}) * g[{n} * C + c] * x{t.a}" for n, t in terms if t.b == b]
        lines.append(f"to_y[{b} * C + c] = {' + '.join(own) or '0'};")
    body = "\n            ".join(lines)
    return f"""
extern "C" void {name}_backward(const real* left, const real* right, int64_t n,
    const real* grad, int64_t n_grads, real* to_left, real* to_right) {{
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n_grads; ++i) {{
        const real* __restrict x = left + i % n * {table.n_left} * C;
        const real* __restrict y = right + i % n * {table.n_right} * C;
        const real* __restrict g = grad + i * {len(table.rows)} * C;
        real* __restrict to_x = to_left + i * {table.n_left} * C;
        real* __restrict to_y = to_right + i * {table.n_right} * C;
        #pragma omp simd
        for (int64_t c = 0; c < C; ++c) {{
            {body}
        }}
    }}
}}
"""
