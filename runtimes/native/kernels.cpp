// The custom operators that ONNX Runtime is given: what they take, and who computes it. The arithmetic is elsewhere.
#include <exception>

#include "abi.h"
#include "matmul.h"
#include "recurrence.h"

namespace {

constexpr char DOMAIN[] = "rwkv_export.native";
constexpr size_t MOST_RANK = 8;

template <class Job, void (Job::*part)(size_t) const>
void run(const ort::Table* table, const ort::Context* context, const Job& job, size_t total) {
    const auto call = [](void* data, size_t number) { (static_cast<const Job*>(data)->*part)(number); };
    if (total == 1) return (job.*part)(0);
    ort::parallel(table, context, call, total, const_cast<Job*>(&job));
}

const float* floats(const ort::Table* table, const ort::Context* context, size_t index) {
    const ort::Value* value = ort::input(table, context, index);
    return value ? static_cast<const float*>(ort::data(table, value)) : nullptr;
}

const ort::Value* needed(const ort::Table* table, const ort::Info* info, size_t index) {
    const ort::Value* value = ort::constant(table, info, index);
    if (!value) throw ort::Failure{ort::failure(table, "quantised weights and their scales must be initializers")};
    return value;
}

// X (..., K), weights, scales, zero points or none, bias or none -> (..., N): com.microsoft's MatMulNBits of 4 bits or,
// without zero points, 8; blocks are of 32 or a multiple.
struct Blocks {
    static constexpr const char* NAME = "MatMulBlocks";
    static constexpr ort::Type CODES = ort::UINT8;

    static matmul::Layout layout(const ort::Table* table, const ort::Info* info) {
        const auto number = [&](const char* name) { return ort::integer(table, info, name); };
        return {number("N"), number("K"), number("bits"), number("block_size"), number("zero_points") != 0};
    }
    static size_t code_bytes(const matmul::Layout& is) { return size_t(is.n * is.blocks() * is.block * is.bits / 8); }
    static void pack(const matmul::Layout& is, const void* codes, char* to) {
        matmul::pack_blocks(is, static_cast<const uint8_t*>(codes), to);
    }
};

// The same inputs: com.microsoft's DynamicQuantizeMatMul with int8 weights around 0 and a scale for each column, but
// activations are quantised 32 at a time.
struct Columns {
    static constexpr const char* NAME = "MatMulColumns";
    static constexpr ort::Type CODES = ort::INT8;

    static matmul::Layout layout(const ort::Table* table, const ort::Info* info) {
        int64_t dims[2];
        if (ort::dimensions(table, needed(table, info, 1), dims, 2) != 2)
            throw ort::Failure{ort::failure(table, "the weights are no matrix")};
        return {dims[1], dims[0], 8, matmul::parts(dims[0], matmul::GROUP) * matmul::GROUP, false};
    }
    static size_t code_bytes(const matmul::Layout& is) { return size_t(is.n * is.k); }
    static void pack(const matmul::Layout& is, const void* codes, char* to) {
        matmul::pack_columns(is, static_cast<const int8_t*>(codes), to);
    }
};

template <class Storage>
class MatMul {
public:
    static constexpr const char* NAME = Storage::NAME;
    static constexpr size_t INPUTS = 5, NEEDED = 3, OUTPUTS = 1;
    static ort::Type input(size_t index) {
        return index == 1 ? Storage::CODES : index == 3 ? ort::UINT8 : ort::FLOAT;
    }

    MatMul(const ort::Table* table, const ort::Info* info) : table_(table), is_(Storage::layout(table, info)) {
        const void* codes = ort::data(table, needed(table, info, 1));
        const auto scales = static_cast<const float*>(ort::data(table, needed(table, info, 2)));
        const auto zeros = is_.zeros ? static_cast<const uint8_t*>(ort::data(table, needed(table, info, 3))) : nullptr;
        uint64_t hash[2] = {uint64_t(is_.block), uint64_t(is_.bits)};
        memory::hash(codes, Storage::code_bytes(is_), hash);
        memory::hash(scales, size_t(is_.n * is_.blocks()) * sizeof(float), hash);
        if (zeros) memory::hash(zeros, size_t(is_.n * matmul::parts(is_.blocks(), 2)), hash);
        const auto fill = [&](char* to) {
            Storage::pack(is_, codes, to);
            if (zeros) matmul::pack_zeros(is_, zeros, to);
            return matmul::pack_scales(is_, scales, to);
        };
        weights_ = memory::registry().get({hash[0], hash[1], is_.n, is_.k}, size_t(is_.size()), fill);
        memory::give_back(codes, Storage::code_bytes(is_));
    }

    void compute(ort::Context* context) const {
        thread_local matmul::Rows rows;
        int64_t dims[MOST_RANK], count = 1;
        const ort::Value* x = ort::input(table_, context, 0);
        const size_t rank = ort::dimensions(table_, x, dims, MOST_RANK);
        if (!rank || rank > MOST_RANK || dims[rank - 1] != is_.k)
            throw ort::Failure{ort::failure(table_, "the last dimension of the activations is not K")};
        for (size_t i = 0; i + 1 < rank; i++) count *= dims[i];
        dims[rank - 1] = is_.n;
        auto to = static_cast<float*>(ort::data(table_, ort::output(table_, context, 0, dims, rank)));
        if (!count) return;
        rows.quantise(static_cast<const float*>(ort::data(table_, x)), count, is_);
        const float* bias = ort::inputs(table_, context) == INPUTS ? floats(table_, context, INPUTS - 1) : nullptr;
        const matmul::Product product{is_, weights_.get(), bias, to, &rows};
        run<matmul::Product, &matmul::Product::share>(table_, context, product, product.shares());
    }

private:
    const ort::Table* table_;
    matmul::Layout is_;
    std::shared_ptr<const memory::Block> weights_;
};

// (r, log_w, k, v, kk, b, S) -> (y, S): see recurrence.h.
class Recurrence7 {
public:
    static constexpr const char* NAME = "Recurrence7";
    static constexpr size_t INPUTS = 7, NEEDED = 7, OUTPUTS = 2;
    static ort::Type input(size_t) { return ort::FLOAT; }

    Recurrence7(const ort::Table* table, const ort::Info*) : table_(table) {}

    void compute(ort::Context* context) const {
        int64_t dims[4], state[4];
        const size_t rank = ort::dimensions(table_, ort::input(table_, context, 0), dims, 4);
        ort::dimensions(table_, ort::input(table_, context, 6), state, 4);
        if (rank != 3 || dims[2] > recurrence::LARGEST)
            throw ort::Failure{ort::failure(table_, "expected (tokens, heads, size), the size at most 256")};
        const float* in[INPUTS];
        for (size_t i = 0; i < INPUTS; i++) in[i] = floats(table_, context, i);
        auto y = static_cast<float*>(ort::data(table_, ort::output(table_, context, 0, dims, 3)));
        auto after = static_cast<float*>(ort::data(table_, ort::output(table_, context, 1, state, 4)));
        const recurrence::Step step{dims[0], dims[1], dims[2], in[0], in[1], in[2], in[3], in[4], in[5], in[6], y, after};
        run<recurrence::Step, &recurrence::Step::head>(table_, context, step, size_t(dims[1]));
    }

private:
    const ort::Table* table_;
};

// Runs `body` and turns what it throws into a status.
template <class Body>
ort::Status* guarded(const ort::Table* table, Body body) {
    try {
        body();
        return nullptr;
    } catch (const ort::Failure& failure) {
        return failure.status;
    } catch (const std::exception& error) {
        return ort::failure(table, error.what());
    }
}

template <class Kernel>
struct Made {  // a kernel knows its function table only while it is made
    const ort::Table* table;
    Kernel kernel;
};

template <class Kernel>
const ort::Op* op() {
    static const ort::Op made = [] {
        ort::Op op{};
        op.version = ort::VERSION;
        op.name = [](const ort::Op*) { return Kernel::NAME; };
        op.provider = [](const ort::Op*) -> const char* { return nullptr; };
        op.inputs = [](const ort::Op*) { return Kernel::INPUTS; };
        op.input_type = [](const ort::Op*, size_t index) { return Kernel::input(index); };
        op.input_kind = [](const ort::Op*, size_t i) { return i < Kernel::NEEDED ? ort::REQUIRED : ort::OPTIONAL; };
        op.input_memory = [](const ort::Op*, size_t) { return 0; };
        op.outputs = [](const ort::Op*) { return Kernel::OUTPUTS; };
        op.output_type = [](const ort::Op*, size_t) { return ort::FLOAT; };
        op.output_kind = [](const ort::Op*, size_t) { return ort::REQUIRED; };
        op.first_version = [](const ort::Op*) { return 1; };
        op.last_version = [](const ort::Op*) { return 1; };
        for (auto& none : op.variadic) none = [](const ort::Op*) { return 1; };
        op.create_or_fail = [](const ort::Op*, const ort::Table* table, const ort::Info* info, void** to) {
            return guarded(table, [&] { *to = new Made<Kernel>{table, Kernel(table, info)}; });
        };
        op.compute_or_fail = [](void* kernel, ort::Context* context) {
            const auto& made = *static_cast<const Made<Kernel>*>(kernel);
            return guarded(made.table, [&] { made.kernel.compute(context); });
        };
        op.destroy = [](void* kernel) { delete static_cast<Made<Kernel>*>(kernel); };
        return op;
    }();
    return &made;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::Options* options,
                                                                                 const ort::Base* base) {
    const ort::Table* table = base->get(ort::VERSION);
    if (!table) return nullptr;  // older than the interface; the session then knows no such operators and says so
    return guarded(table, [&] {
        static ort::Domain* const domain = [&] {
            ort::Domain* made = ort::domain(table, DOMAIN);
            ort::add(table, made, op<MatMul<Blocks>>());
            ort::add(table, made, op<MatMul<Columns>>());
            ort::add(table, made, op<Recurrence7>());
            return made;
        }();
        ort::add(table, options, domain);
    });
}

// Distinct constants that the sessions of this process hold, however many sessions hold each.
extern "C" __attribute__((visibility("default"))) int64_t rwkv_export_constants() {
    return memory::registry().count();
}
