"""C++ source of the tensor products of `fused`, unrolled for one set of couplings.

A compiler of tensor programs stores intermediates of every edge and channel; these kernels keep
them in registers and read each neighbour once. The inner, vectorised loop runs over channels. The
source needs the C++ standard library and OpenMP alone, so it builds in seconds and outlives
versions of torch.
"""

from __future__ import annotations

from ase_bayesmlip.nn.couplings import Couplings
from ase_bayesmlip.nn.radial_table import GRID_SCALE


def prelude(real: str, channels: int, cutoff: float) -> str:
    """What all kernels share: types, and where a distance lies in a radial table."""
    return f"""#include <algorithm>
#include <cstdint>
#include <cstring>
using real = {real};
constexpr int64_t C = {channels};

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
    """Forward and backward of `fused.NeighborCoupling`."""
    return _neighbor_forward(name, table) + _neighbor_backward(name, table)


def channel_kernels(name: str, table: Couplings) -> str:
    """Forward and backward of `fused.ChannelCoupling`."""
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
            const real* __restrict e = edge + place * {len(table.entries())};
            const real* __restrict s = features + (m * n_atoms + j) * {table.n_left} * C;
            const real* __restrict f =
                radial + (m * (intervals + 2) + at.row) * {3 * table.n_paths} * C;"""


def _radial(kind: str, path: int, n_paths: int) -> str:
    """Value or slope of a radial function at channel c; rows hold value, step and slope."""
    places = [n_paths + path, 2 * n_paths + path, 5 * n_paths + path]
    terms = [f"at.{kind}[{q}] * f[{place} * C + c]" for q, place in enumerate(places)]
    if kind == "value":
        terms.insert(0, f"f[{path} * C + c]")
    return " + ".join(terms)


def _neighbor_forward(name: str, table: Couplings) -> str:
    place = {entry: column for column, entry in enumerate(table.entries())}
    lines = [
        f"const real w{p} = {_radial('value', p, table.n_paths)};" for p in range(table.n_paths)
    ]
    lines += [f"const real s{a} = s[{a} * C + c];" for a in range(table.n_left)]
    for number, row in enumerate(table.rows):
        terms = " + ".join(f"e[{place[number, a]}] * s{a}" for a in row.left_components())
        lines.append(f"sum[{number} * C + c] += w{row.path} * ({terms});")
    body = "\n                ".join(lines)
    n_rows = len(table.rows)
    return f"""
extern "C" void {name}_forward({_GEOMETRY}, real* rows) {{
    #pragma omp parallel for collapse(2) schedule(static)
    for (int64_t m = 0; m < members; ++m)
    for (int64_t i = 0; i < n_atoms; ++i) {{
        alignas(64) real sum[{n_rows} * C] = {{}};
        for (int64_t k = 0; k < count[i]; ++k) {{{_lookup(table)}
            #pragma omp simd
            for (int64_t c = 0; c < C; ++c) {{
                {body}
            }}
        }}
        std::memcpy(rows + (m * n_atoms + i) * {n_rows} * C, sum, sizeof(sum));
    }}
}}
"""


def _neighbor_backward(name: str, table: Couplings) -> str:
    n_rows, turned = len(table.rows), _turned(table)
    lines = [f"const real s{a} = s[{a} * C + c];" for a in range(table.n_left)]
    for path in range(table.n_paths):
        lines += _path_slopes(table, path)
    body = "\n                ".join(lines)
    sums = ", ".join(["radial_slope", *(f"y{b}" for b in turned)])
    start = ", ".join(["radial_slope = 0", *(f"y{b} = 0" for b in turned)])
    store = "\n            ".join(f"by_harmonics[{b}] = y{b};" for b in turned)
    return f"""
extern "C" void {name}_backward({_GEOMETRY},
    const real* grad, real* to_features, real* to_harmonics, real* to_distances) {{
    #pragma omp parallel for collapse(2) schedule(static)
    for (int64_t m = 0; m < members; ++m)
    for (int64_t i = 0; i < n_atoms; ++i) {{
        alignas(64) real sent[{table.n_left} * C] = {{}};
        const real* __restrict g = grad + (m * n_atoms + i) * {n_rows} * C;
        const int64_t first = (m * n_atoms + i) * width;
        std::memset(to_harmonics + first * {table.n_right}, 0,
                    width * {table.n_right} * sizeof(real));
        std::memset(to_distances + first, 0, width * sizeof(real));
        for (int64_t k = 0; k < count[i]; ++k) {{{_lookup(table)}
            const real* __restrict gj = grad + (m * n_atoms + j) * {n_rows} * C;
            real {start};
            #pragma omp simd reduction(+ : {sums})
            for (int64_t c = 0; c < C; ++c) {{
                {body}
            }}
            to_distances[first + k] = radial_slope;
            real* __restrict by_harmonics = to_harmonics + (first + k) * {table.n_right};
            {store}
        }}
        std::memcpy(to_features + (m * n_atoms + i) * {table.n_left} * C, sent, sizeof(sent));
    }}
}}
"""


def _path_slopes(table: Couplings, path: int) -> list[str]:
    """Statements that add what one path contributes to the three derivatives."""
    place = {entry: column for column, entry in enumerate(table.entries())}
    rows = [(n, row) for n, row in enumerate(table.rows) if row.path == path]
    stretched = []
    for n, row in rows:
        terms = " + ".join(f"e[{place[n, a]}] * s{a}" for a in row.left_components())
        stretched.append(f"g[{n} * C + c] * ({terms})")
    lines = [
        f"{{ const real w = {_radial('value', path, table.n_paths)};",
        f"const real d = {_radial('slope', path, table.n_paths)};",
        f"radial_slope += d * ({' + '.join(stretched)});",
    ]
    sign = table.parity(rows[0][1])
    for a in sorted({a for _, row in rows for a in row.left_components()}):
        own = [(n, row) for n, row in rows if a in row.left_components()]
        sent = " + ".join(f"e[{place[n, a]}] * gj[{n} * C + c]" for n, _ in own)
        lines.append(f"sent[{a} * C + c] += real({sign}) * w * ({sent});")
    for b in _turned(table):
        products = [
            f"real({term.coefficient!r}) * g[{n} * C + c] * s{term.a}"
            for n, row in rows
            for term in row.terms
            if term.b == b
        ]
        if products:
            lines.append(f"y{b} += w * ({' + '.join(products)});")
    return [*lines, "}"]


def _turned(table: Couplings) -> list[int]:
    """Harmonics that depend on the direction: the slope by Y_00 is never used."""
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
    const real* grad, real* to_left, real* to_right) {{
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) {{
        const real* __restrict x = left + i * {table.n_left} * C;
        const real* __restrict y = right + i * {table.n_right} * C;
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
