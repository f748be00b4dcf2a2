# Sourced by presets: `words WEIGHTING LOSS…` makes of losses what METHODS of run.sh wants, LOSS:WEIGHTING:b,option=value.
# The weights are those of the released commands on CIFAR-100, see docs/methods.md; dkd's and catkd's are of resnet32x4 and
# a student of its kind.

weights=' kd:0,gamma=0.1,alpha=0.9 dkd:0 ls:0,gamma=0.1,alpha=9 dist:0,alpha=2 nkd:0 inter:50'
weights="$weights srrl:1,feat_start_epoch=1 semckd:400,feat_start_epoch=1 simkd:1,gamma=0,alpha=0"
for each in hint:100 at:1000 sp:3000 cc:0.02 vid:1 rkd:1 pkt:30000 nst:50 fsp:50 ab:1 ft:200 crd:0.8 \
    ofd:0.001 reviewkd:5 catkd:15,no-cam_normalize; do
    weights="$weights $each,alpha=0,feat_start_epoch=1"
done

every_loss() {
    for each in $weights; do
        echo "${each%%:*}"
    done
}

words() {
    weighting=$1
    shift
    for loss; do
        case "$weights" in
        *" $loss:"*) rest=${weights#*" $loss:"} ;;
        *)
            printf '%s: error: LOSSES: %s is none of: %s\n' "$0" "$loss" "$(every_loss | xargs)" >&2
            exit 2
            ;;
        esac
        printf '%s:%s:%s ' "$loss" "$weighting" "${rest%% *}"
    done
}
