// The step of torch's SGD, Adam and AdamW, to their bits, in one pass over memory: a block of a
// gradient goes through elementwise operations, and is stepped with while it is in cache.
//
// native.cpp includes this where no LEVEL is set, for what both halves know, and once for each
// level. No sum is in it: what has to be known of torch is which products it does not round.
#ifndef LEVEL
namespace {

using Root = void (*)(int n, const float* x, float* y, i64 mode);
struct Rule {  // kind: 1 SGD, 2 Adam; contracts: whether torch uses fused multiply-adds
    double beta1, beta2, lr, weight_decay, momentum, dampening, eps;
    double fused, maximize, nesterov, decoupled, amsgrad, kind, contracts;
};
struct Step {
    const Rule& rule;
    Root root;         // torch.sqrt; null: the nearest number
    const float* ops;  // four numbers each, see `transform`
    i64 count;         // of them
    const i64* words;  // seven columns of these, see `Leaf`
    i64 size;
    int threads;
};
constexpr i64 ROOT_MODE = 0x140102;  // as torch asks MKL: accurate, denormals kept, errors ignored
constexpr int BLOCK = 512;           // elements, of which all that a step touches is in cache
constexpr int TURN = 64 * BLOCK;     // of a thread
constexpr int LANES = 8;             // of torch's fused functions

}  // namespace
#else

struct Leaf {  // a parameter of n elements, its count of steps, its gradient and its states
    i64 n;
    float *count, *param, *grad, *first, *second, *most;
};

template <class Function> INLINE void each(int n, Function f) {
#pragma GCC ivdep
    for (int i = 0; i < n; i++) f(i);
}

// a * b + c
template <bool once> INLINE float ma(float a, float b, float c) {
    return once ? std::fma(a, b, c) : a * b + c;
}

// a * b + c * d. `tail`: among the last n % LANES elements, which torch's fused functions take one
// by one, and there it is the other product that they do not round.
template <bool once, bool tail> INLINE float products(float a, float b, float c, float d) {
    return tail ? ma<once>(c, d, a * b) : ma<once>(a, b, c * d);
}

void transform(const float* op, float* g, int n) {
    const float code = op[0], a = op[1], b = op[2], c = op[3];
    auto at_least = [=](float x) { return a > x ? a : x; };  // NaN stays
    if (code == 0) each(n, [=](int i) { g[i] = b < at_least(g[i]) ? b : at_least(g[i]); });
    if (code == 1) each(n, [=](int i) { g[i] *= a; });
    if (code == 2) each(n, [=](int i) { g[i] += a; });
    auto replaced = [=](float x) { return x == INFINITY ? b : x == -INFINITY ? c : x; };
    if (code == 3) each(n, [=](int i) { g[i] = g[i] != g[i] ? a : replaced(g[i]); });
}

template <bool once, bool tail>
void sgd(const Rule& rule, float lr, float* p, const float* g, float* m, int n) {
    const float momentum = rule.momentum, kept = 1 - rule.dampening;
    auto moved = [=](int i) { return m[i] = products<once, tail>(g[i], kept, m[i], momentum); };
    if (rule.momentum == 0)
        each(n, [=](int i) { p[i] = ma<once>(g[i], lr, p[i]); });
    else if (rule.nesterov)
        each(n, [=](int i) { p[i] = ma<once>(ma<once>(moved(i), momentum, g[i]), lr, p[i]); });
    else
        each(n, [=](int i) { p[i] = ma<once>(moved(i), lr, p[i]); });
}

template <bool once, bool tail>
void adam(const Step& step, float lr, float scale, float* p, const float* g, float* m, float* v,
          float* most, int n) {
    const Rule& rule = step.rule;
    const float beta2 = rule.beta2, rest = 1 - rule.beta2, weight = 1 - rule.beta1, eps = rule.eps;
    const float shrink = 1 - rule.lr * rule.weight_decay;
    const bool low = weight < 0.5f;  // torch.lerp starts from the nearer end
    const float w = low ? weight : -(1.0f - weight);  // -0 too
    if (rule.decoupled && rule.weight_decay != 0) each(n, [=](int i) { p[i] *= shrink; });
    auto moments = [=](int i) {
        m[i] = ma<once>(w, g[i] - m[i], low ? m[i] : g[i]);
        v[i] = products<once, tail>(rest * g[i], g[i], v[i], beta2);
    };
    auto descend = [=](int i, float root) { p[i] += lr * m[i] / (root / scale + eps); };
    if (!rule.amsgrad && !step.root)
        return each(n, [=](int i) { moments(i), descend(i, std::sqrt(v[i])); });  // at once
    each(n, moments);
    if (rule.amsgrad) {
        auto over = [](float a, float b) { return (a > b) | (!tail & (a != a)); };  // NaN too
        each(n, [=](int i) { most[i] = over(v[i], most[i]) ? v[i] : most[i]; });
        v = most;
    }
    if (!step.root) return each(n, [=](int i) { descend(i, std::sqrt(v[i])); });
    float root[BLOCK];
    step.root(n, v, root, ROOT_MODE);
    each(n, [&](int i) { descend(i, root[i]); });
}

template <bool once, bool tail>
void step_block(const Step& step, const Leaf& leaf, float lr, float scale, i64 start, int n) {
    const Rule& rule = step.rule;
    float seen[BLOCK], *p = leaf.param + start, *m = leaf.first + start;
    const float *g = leaf.grad + start, decay = rule.weight_decay;
    if (rule.maximize) {
        each(n, [&](int i) { seen[i] = -g[i]; });
        g = seen;
    }
    if (rule.weight_decay != 0 && !rule.decoupled) {
        each(n, [&](int i) { seen[i] = ma<once>(p[i], decay, g[i]); });
        g = seen;
    }
    if (rule.kind == 1) return sgd<once, tail>(rule, lr, p, g, m, n);
    float *v = leaf.second + start, *most = leaf.most + start;
    adam<once, tail>(step, lr, scale, p, g, m, v, most, n);
}

template <bool once> void step_part(const Step& step, const Leaf& leaf, i64 start, i64 stop) {
    const Rule& rule = step.rule;
    double left = 1, square = 1;
    if (rule.kind == 2) {
        left -= std::pow(rule.beta1, *leaf.count);
        square -= std::pow(rule.beta2, *leaf.count);
    }
    const float lr = -(rule.lr / left);
    const float scale = rule.fused ? std::sqrt(square) : std::pow(square, 0.5);
    for (i64 i = start; i < stop; i += BLOCK) {
        const int n = (int)std::min<i64>(BLOCK, stop - i);
        const int whole = rule.fused && i + n == leaf.n ? n - n % LANES : n;
        for (i64 k = 0; k < step.count; k++) transform(step.ops + 4 * k, leaf.grad + i, n);
        step_block<once, false>(step, leaf, lr, scale, i, whole);
        if (whole < n) step_block<once, true>(step, leaf, lr, scale, i + whole, n - whole);
    }
}

void step_all(const Step& step) {
    auto at = [&](int column, i64 k) { return (float*)step.words[column * step.size + k]; };
    i64 total = 0;
    for (i64 k = 0; k < step.size; k++) {
        total += step.words[k];
        if (step.rule.kind == 2) *at(1, k) += 1;
    }
    const int threads = threads_for(total, step.threads);
    auto part = step.rule.contracts ? step_part<true> : step_part<false>;
    parallel(threads, [=, &step](int mine) {
        i64 turn = 0;
        for (i64 k = 0; k < step.size; k++) {
            const Leaf leaf = {step.words[k], at(1, k), at(2, k), at(3, k),
                               at(4, k),      at(5, k), at(6, k)};
            for (i64 i = 0; i < leaf.n; i += TURN)
                if (turn++ % threads == mine) part(step, leaf, i, std::min(leaf.n, i + TURN));
        }
    });
}
#endif
