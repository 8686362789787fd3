"""Small tables of every kind that the page of performance is drawn from, with numbers whose ratios are plain."""

PEERS = """case,provider,part,precision,shape,p50_s,cpu_p50_s,samples_per_s,peak_gb,rounds,apart,public_commit,load,\
device,torch,commit,python
net,public,forward,fp32,1x2,1,1,1,3.0,2,0.0,abc,1.5,a CPU,2.13,def,3.11
net,public,step,fp32,1x2,4.0,8.0,0.25,3.0,2,0.0,abc,1.5,a CPU,2.13,def,3.11
net,ours,forward,fp32,1x2,1,1,1,2.0,2,1e-6,abc,1.5,a CPU,2.13,def,3.11
net,ours,step,fp32,1x2,2.5,2.0,0.4,2.0,2,1e-6,abc,1.5,a CPU,2.13,def,3.11
"""
STEPS = """case,input,precision,shape,parameters,training_gflop,needs_gb,p20_s,p50_s,p80_s,cpu_p50_s,samples_per_s,\
peak_gb,product_tflop_per_s,model_flop_utilisation,kinds,rounds,load,device,torch,commit,python
net,none,fp32,1x2,2500000,1234.5,0.5,1,1,1,2,1.0,0.7,0.1,0.25,convolution:0.750 other:0.250,1,2.0,a CPU,2.13,def,3.11
big,none,fp32,1x2,976274441,44728.8,26.94,,,,,,,,,,0,,a CPU,2.13,def,3.11
"""
SAMPLING = """part,way,networks,shape,members,dtype,p20_s,p50_s,p80_s,repeats,load,device,torch,triton,commit,python
ddim-20,batched,SEVIR,4x12x4x12x12,4,float32,3.5,4.0,4.5,2,1.0,a CPU,2.13,3.6,def,3.11
ddim-20,member by member,SEVIR,4x12x4x12x12,4,float32,5,6.0,7,2,1.0,a CPU,2.13,3.6,def,3.11
decode,batched,small,2x12x4x8x8,2,float32,1,1.0,1,1,1.0,a CPU,2.13,3.6,def,3.11
"""
INFERENCE = """case,way,precision,shape,p20_s,p50_s,p80_s,apart,repeats,threads,load,device,torch,triton,commit,python
net,eager,fp32,1x2,0.003,0.004,0.005,0.0,10,2,1.0,a CPU,2.13,3.6,def,3.11
net,graph,fp32,1x2,0.001,0.002,0.003,1e-7,10,2,1.0,a CPU,2.13,3.6,def,3.11
"""
SCORING = """provider,shape,thresholds,p20_s,p50_s,p80_s,cpu_least_s,repetitions,public_commit,load,device,torch,\
commit,python
cascast,12x384x384,6,0.19,0.2,0.25,0.15,20,abc,1.0,a CPU,2.13,def,3.11
"ours, maxima",12x384x384,6,0.09,0.1,0.125,0.05,20,abc,1.0,a CPU,2.13,def,3.11
"""
_OF_EVENTS = "12,49,384,5"
_READ = "1.0,a CPU,2.13,def,3.11"
READING = f"""provider,layout,order,cache,windows_per_core_s,windows_per_s,events,frames,size,repetitions,\
public_commit,load,device,torch,commit,python
public loader,gzip,random,warm,10,9,{_OF_EVENTS},abc,{_READ}
public loader,gzip,random,dropped,5,4,{_OF_EVENTS},abc,{_READ}
public loader,contiguous,random,warm,40,30,{_OF_EVENTS},abc,{_READ}
ours,contiguous,random,warm,60,50,{_OF_EVENTS},abc,1.5,a CPU,2.13,def,3.11
ours,shards lz4,random,warm,80,70,{_OF_EVENTS},abc,{_READ}
ours,shards lz4,random,dropped,20,15,{_OF_EVENTS},abc,{_READ}
"""
PREPARATION = """way,layout,codec,ranks,bare_ms,ours_ms,megabytes,events,frames,size,repetitions,load,device,torch,\
commit,python
command,gzip,lz4,1,,120,,12,49,384,2,1.0,a CPU,2.13,def,3.11
command,gzip,lz4,2,,132,,12,49,384,2,1.0,a CPU,2.13,def,3.11
in process,gzip,lz4,1,90,100,40,12,49,384,5,1.0,a CPU,2.13,def,3.11
"""
OPENING = """events,windows,seconds,mib,load,device,torch,commit,python
18979,56937,0.25,30.2,1.0,a CPU,2.13,def,3.11
189790,569370,1.25,300.2,1.0,a CPU,2.13,def,3.11
"""
ZERO = """size,parameters,precision,ranks,micro_batch,zero_stage,samples_per_s,step_s_p50,step_cpu_s_p50,state_mib,\
computed_state_mib,peak_mib,computed_peak_mib,steps,load,device,torch,triton,deepspeed,commit,python
small,31403584,fp32,2,2,0,4,1,0.9,359.7,479.2,802.1,562.1,5,2.0,a CPU,2.13,3.6,0.19,def,3.11
small,31403584,fp32,2,2,3,3,1.333,1.25,2207.1,299.4,1134.2,382.2,5,2.0,a CPU,2.13,3.6,0.19,def,3.11
small,31403584,bf16,2,2,1,5,0.8,0.7,200,210,300,310,5,2.0,a CPU,2.13,3.6,0.19,def,3.11
"""
_ON = "a CPU,2.13,3.6,def,3.11"
SCALING = f"""kind,model,ranks,zero_stage,precision,zero_hpz_partition_size,accumulation,megabits,turn,steps,seconds,\
processor_seconds,sent_bytes,computed_bytes,model_seconds,model_seconds_overlapped,model_error,load,device,torch,\
triton,commit,python
ranks,test,1,0,fp32,,4,,0,2,2.0,0.4,0,0.0,,,,1.5,{_ON}
ranks,test,4,3,fp32,2,2,,0,2,2.0,0.4,46000000,46000000,,,,1.5,{_ON}
link,test,2,1,bf16,,1,50.0,0,2,4.0,0.3,15400000,15338645,3.0,,-0.25,1.5,{_ON}
link,test,2,1,bf16,,1,50.0,1,2,9.0,0.2,15400000,15338645,3.0,,-0.25,2.5,{_ON}
link,test,2,1,bf16,,1,50.0,2,2,3.5,0.5,15400000,15338645,3.0,,-0.25,2.5,{_ON}
model,1 B,1024,3,bf16,8,1,,,,,,,1,0.2,0.1,,,{_ON}
"""
