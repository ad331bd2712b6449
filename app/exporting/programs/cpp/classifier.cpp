#include "classifier.hpp"

#include <algorithm>
#include <array>

std::size_t Answer::best() const {
    const auto found = std::max_element(probabilities.begin(), probabilities.end());
    return static_cast<std::size_t>(found - probabilities.begin());
}

Classifier::Classifier(const std::filesystem::path& model)
    : session_(env_, model.c_str(), Ort::SessionOptions{}) {}

Answer Classifier::operator()(const Picture& picture) {
    const std::array<std::int64_t, 3> shape{picture.height, picture.width, 3};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    // the API takes a pointer to data that it may change, but an input is only read
    auto* rgb = const_cast<std::uint8_t*>(picture.rgb.data());
    const Ort::Value image = Ort::Value::CreateTensor<std::uint8_t>(memory, rgb, picture.rgb.size(),
                                                                    shape.data(), shape.size());
    const std::array<const char*, 1> inputs{"image"};
    const std::array<const char*, 2> outputs{"probabilities", "classes"};
    auto found = session_.Run(Ort::RunOptions{nullptr}, inputs.data(), &image, inputs.size(),
                              outputs.data(), outputs.size());
    const auto count = found[0].GetTensorTypeAndShapeInfo().GetElementCount();
    const auto* numbers = found[0].GetTensorData<float>();
    Answer answer{{}, {numbers, numbers + count}};
    for (std::size_t i = 0; i < count; ++i) {
        answer.classes.push_back(found[1].GetStringTensorElement(i));
    }
    return answer;
}

bool Classifier::turnsUpright() {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto exif =
        session_.GetModelMetadata().LookupCustomMetadataMapAllocated("exif", allocator);
    return !exif || std::string(exif.get()) == "turn";
}
