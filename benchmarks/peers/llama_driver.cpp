// Quantises a GGUF file with libllama, or serves one over stdin and stdout; knows nothing of tokenizers or sampling.
//
//   llama_driver quantise IN.gguf OUT.gguf F32|Q8_0|Q4_0
//   llama_driver serve MODEL.gguf THREADS        requests and answers: see protocol.py

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"

namespace {

constexpr int BATCH = 512;      // llama.cpp's default n_ubatch
constexpr int CONTEXT = 8192;   // positions only: the state of RWKV does not grow

using Clock = std::chrono::steady_clock;
using Seconds = std::vector<double>;

double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

void show_errors(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) std::cerr << text;
}

class Engine {
  public:
    Engine(const std::string & path, int threads) {
        auto model_params = llama_model_default_params();
        model_params.n_gpu_layers = 0;
        model_ = llama_model_load_from_file(path.c_str(), model_params);
        if (!model_) throw std::runtime_error("llama.cpp cannot load " + path);
        auto params = llama_context_default_params();
        params.n_ctx = CONTEXT;
        params.n_batch = BATCH;
        params.n_ubatch = BATCH;
        params.n_threads = threads;
        params.n_threads_batch = threads;
        context_ = llama_init_from_model(model_, params);
        if (!context_) throw std::runtime_error("llama.cpp cannot make a context for " + path);
        vocab_ = llama_vocab_n_tokens(llama_model_get_vocab(model_));
        batch_ = llama_batch_init(BATCH, 0, 1);
    }

    ~Engine() {
        llama_batch_free(batch_);
        llama_free(context_);
        llama_model_free(model_);
    }

    Engine(const Engine &) = delete;
    Engine & operator=(const Engine &) = delete;

    Seconds decode(int count) {
        restart();
        Seconds seconds;
        for (int i = 0; i < count; i++) {
            const auto start = Clock::now();
            feed(i, 1, true);
            seconds.push_back(since(start));
        }
        return seconds;
    }

    double prefill(int count) {
        restart();
        const auto start = Clock::now();
        for (int first = 0; first < count; first += BATCH) {
            const int size = std::min(BATCH, count - first);
            feed(first, size, first + size == count);
        }
        return since(start);
    }

    void write_logits(const std::string & path) const {
        std::ofstream file(path, std::ios::binary);
        file.write(reinterpret_cast<const char *>(logits_), sizeof(float) * vocab_);
        if (!file.flush()) throw std::runtime_error("cannot write " + path);
    }

  private:
    void restart() { llama_memory_clear(llama_get_memory(context_), true); }

    void feed(int first, int size, bool last) {
        batch_.n_tokens = size;
        for (int i = 0; i < size; i++) {
            batch_.token[i] = static_cast<llama_token>((100 + 977LL * (first + i)) % vocab_);
            batch_.pos[i] = first + i;
            batch_.n_seq_id[i] = 1;
            batch_.seq_id[i][0] = 0;
            batch_.logits[i] = last && i == size - 1;
        }
        if (llama_decode(context_, batch_) != 0) throw std::runtime_error("llama_decode failed");
        llama_synchronize(context_);
        if (last) logits_ = llama_get_logits_ith(context_, -1);
    }

    llama_model * model_ = nullptr;
    llama_context * context_ = nullptr;
    llama_batch batch_{};
    long long vocab_ = 0;
    const float * logits_ = nullptr;
};

void print(const Seconds & seconds) {
    std::ostringstream text;
    text.precision(9);
    for (const double value : seconds) text << (text.tellp() > 0 ? ", " : "") << value;
    std::cout << "{\"seconds\": [" << text.str() << "]}" << std::endl;
}

void answer(Engine & engine, const std::string & line) {
    std::istringstream request(line);
    std::string verb, mode, path;
    int count = 0, repeats = 0;
    request >> verb;
    if (verb == "decode" && request >> count) return print(engine.decode(count));
    if (verb == "prefill" && request >> count >> repeats) {
        Seconds seconds;
        while (repeats-- > 0) seconds.push_back(engine.prefill(count));
        return print(seconds);
    }
    if (verb == "logits" && request >> mode >> count && std::getline(request >> std::ws, path)) {
        if (mode == "step") engine.decode(count);
        else engine.prefill(count);
        engine.write_logits(path);
        std::cout << "{\"written\": true}" << std::endl;
        return;
    }
    std::cout << "{\"error\": \"not understood\"}" << std::endl;
}

int serve(const std::string & path, int threads) {
    const auto start = Clock::now();
    Engine engine(path, threads);
    std::cout << "{\"load_seconds\": " << since(start) << ", \"system\": \"" << llama_print_system_info()
              << "\", \"version\": \"llama.cpp " << llama_version() << ", ggml " << ggml_version() << " "
              << ggml_commit() << "\"}" << std::endl;
    for (std::string line; std::getline(std::cin, line);) answer(engine, line);
    return 0;
}

int quantise(const char * source, const char * destination, const std::string & type) {
    const std::map<std::string, llama_ftype> types = {
        {"F32", LLAMA_FTYPE_ALL_F32},
        {"Q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
        {"Q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},
    };
    auto params = llama_model_quantize_default_params();
    params.ftype = types.at(type);
    return llama_model_quantize(source, destination, &params) == 0 ? 0 : 1;
}

}  // namespace

int main(int count, char ** arguments) {
    const std::vector<std::string> words(arguments + 1, arguments + count);
    llama_log_set(show_errors, nullptr);
    ggml_backend_load_all();
    llama_backend_init();
    try {
        if (words.size() == 4 && words[0] == "quantise") return quantise(arguments[2], arguments[3], words[3]);
        if (words.size() == 3 && words[0] == "serve") return serve(words[1], std::stoi(words[2]));
        std::cerr << "usage: llama_driver quantise IN OUT TYPE | serve MODEL THREADS\n";
    } catch (const std::exception & error) {
        std::cerr << error.what() << "\n";
    }
    return 2;
}
